#!/bin/sh
# Remakes requirements/*.lock from pyproject.toml, with hashes, in an environment of its own.
#   tools/lock.sh             keeps the versions that still fit
#   tools/lock.sh --upgrade   takes the newest
# Run it with the oldest Python that Forebay supports (3.11), which needs a superset of what newer ones need.
set -eu

cd "$(dirname -- "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
"${PYTHON:-python3.11}" -m venv "$work"
"$work/bin/pip" --disable-pip-version-check install -q pip-tools==7.6.2

CUSTOM_COMPILE_COMMAND=tools/lock.sh
export CUSTOM_COMPILE_COMMAND
compile() {
    "$work/bin/pip-compile" -q --generate-hashes --allow-unsafe --strip-extras \
        --no-emit-index-url --no-emit-trusted-host --no-emit-find-links "$@" pyproject.toml
}
compile --extra cloud --extra simulators --extra dev --build-deps-for editable --output-file requirements/dev.lock "$@"
compile --constraint requirements/dev.lock --output-file requirements/edge.lock "$@"
compile --extra cloud --extra simulators --constraint requirements/dev.lock --output-file requirements/cloud.lock "$@"
compile --extra fuzz --constraint requirements/dev.lock --output-file requirements/fuzz.lock "$@"
compile --extra plots --constraint requirements/dev.lock --output-file requirements/plots.lock "$@"
