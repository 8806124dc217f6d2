#!/bin/sh
# Builds the servers that tests and benchmarks run against, by name, through Go's module proxy:
#   tools/real_parts.sh influxdb1 | influxdb2 | telegraf
# Each becomes one program in ~/.cache/forebay/bin (or $FOREBAY_CACHE/bin), and is built once.
# influxdb1 takes a minute, telegraf another; influxdb2 takes three, and needs Go 1.22, Rust and cc.
set -eu

cache=${FOREBAY_CACHE:-$HOME/.cache/forebay}
bin=$cache/bin

say() { printf 'real_parts: %s\n' "$*" >&2; }

stop() {
    say "$*"
    exit 1
}

# install_module NAME MODULE@VERSION [GO OPTIONS]: one command of a module becomes $bin/NAME.
install_module() {
    name=$1
    module=$2
    shift 2
    GOBIN=$work go install "$@" "$module"
    package=${module%@*}
    mv "$work/${package##*/}" "$bin/$name"
}

influxdb1() {
    install_module influxd-1.8.10 github.com/influxdata/influxdb/cmd/influxd@v1.8.10
}

telegraf() {
    install_module telegraf-1.39.3 github.com/influxdata/telegraf/cmd/telegraf@v1.39.3 \
        -tags custom,inputs.mqtt_consumer,aggregators.basicstats,outputs.influxdb_v2,outputs.influxdb,parsers.influx,parsers.json
}

instead='put an influxd on PATH, or use 1.8, or one that runs elsewhere'

check_for_influxdb2() {
    minor=$(go version | sed -n 's/.* go1\.\([0-9]*\).*/\1/p')
    [ "${minor:-0}" -ge 22 ] || stop "InfluxDB 2.7 is built with Go 1.22 or newer, and $(go version) is here; $instead"
    command -v cargo >/dev/null || stop "InfluxDB 2.7 is built with Rust (cargo) too, which is not here; $instead"
    command -v cc >/dev/null || stop "InfluxDB 2.7 is built with a C compiler (cc) too, which is not here; $instead"
}

# InfluxDB 2 has a part in Rust that cgo finds through a pkg-config of its own.
influxdb2() {
    GOBIN=$work go install github.com/influxdata/pkg-config@latest
    # Its old Rust code denies warnings that newer compilers have more of.
    cat >"$work/rustc-wrapper" <<'WRAPPER'
#!/bin/sh
case " $* " in
*' --cap-lints '*) exec "$@" ;;
*' --crate-name '*) exec "$@" --cap-lints allow ;;
*) exec "$@" ;;
esac
WRAPPER
    chmod +x "$work/rustc-wrapper"
    if command -v rustup >/dev/null; then
        RUSTUP_TOOLCHAIN=$(rustup show active-toolchain | cut -d ' ' -f 1)
        export RUSTUP_TOOLCHAIN
    fi
    mkdir "$work/module"
    cd "$work/module"
    go mod init influxd
    printf '//go:build tools\n\npackage tools\n\nimport _ "github.com/influxdata/influxdb/v2/cmd/influxd"\n' >tools.go
    go get github.com/influxdata/influxdb/v2/cmd/influxd@v2.7.12
    PKG_CONFIG=$work/pkg-config RUSTC_WRAPPER=$work/rustc-wrapper go build -tags sqlite_foreign_keys,sqlite_json \
        -o "$work/influxd" github.com/influxdata/influxdb/v2/cmd/influxd
    mv "$work/influxd" "$bin/influxd-2.7.12"
}

case ${1:-} in
influxdb1) program=influxd-1.8.10 ;;
influxdb2) program=influxd-2.7.12 ;;
telegraf) program=telegraf-1.39.3 ;;
*) stop "name one of: influxdb1 influxdb2 telegraf" ;;
esac
if [ -x "$bin/$program" ]; then
    echo "$bin/$program"
    exit
fi
command -v go >/dev/null || stop "$program is built with Go, which is not here (Debian: apt-get install golang-go)"
[ "$1" != influxdb2 ] || check_for_influxdb2
mkdir -p "$bin"
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
say "building $program"
"$1" >&2
echo "$bin/$program"
