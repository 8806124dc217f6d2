"""Makes docs/configuration.md from the structs that read the configuration.

    python docs/generate_configuration.py            writes it
    python docs/generate_configuration.py --check    fails when it is stale

A key's description is the text below it in its struct; its type and default are the struct's own. Drivers,
codecs, filters and sinks are those that are installed.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

import msgspec

import cloud.config
from devices.profiles import Channel, Profile, ProfileFile, installed, load, load_profile, profile_names
from devices.quantities import DURATION_UNITS, RATE_UNITS, SIZE_UNITS, Duration, Rate, Size
from edge.config import SECTIONS, GatewayConfig, SourceConfig

OUTPUT: Final = Path(__file__).parent / "configuration.md"
SIMPLE_TYPES: Final = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    Duration: "duration",
    Size: "size",
    Rate: "rate",
    Profile: "text",
}
COMMON: Final = {
    "user": "User name to log in with.",
    "password_file": "File that holds the password in one line; `chmod 600` it.",
    "password_env": "Environment variable that holds the password, instead of a file.",
    "token_file": "File that holds the token in one line; `chmod 600` it.",
    "token_env": "Environment variable that holds the token, instead of a file.",
    "ca_file": 'PEM file of the authorities that may sign the server\'s certificate; "": those of the system.',
    "cert_file": "PEM file of our own certificate, where the server asks for one.",
    "key_file": "PEM file of the key of `cert_file`.",
    "keepalive": "A link on which nothing passed for one and a half times as long is given up.",
}
"""Keys that mean the same wherever they stand; a description of their own goes before."""


def render() -> str:
    """The whole document."""
    return "\n".join(_document()) + "\n"


def undocumented() -> list[str]:
    """Keys without a description, as `Struct.key`."""
    return [
        f"{kind.__module__}.{kind.__name__}.{field.encode_name}"
        for kind in _structs()
        for field in msgspec.structs.fields(kind)
        if not _descriptions(kind).get(field.name, COMMON.get(field.name))
    ]


def _document() -> Iterator[str]:
    yield "# Configuration"
    yield ""
    yield "Made from the code by `docs/generate_configuration.py`: change the structs, not this file."
    yield ""
    yield "Durations, sizes and rates bear their unit; a size may be a plain number of bytes."
    yield ""
    yield f'- duration, such as `"250 ms"`: {", ".join(f"`{unit}`" for unit in DURATION_UNITS)}'
    yield f'- size, such as `"64 KiB"`: {", ".join(f"`{unit}`" for unit in SIZE_UNITS)}'
    yield f'- rate, such as `"64 KiB/s"`: {", ".join(f"`{unit}`" for unit in RATE_UNITS)}'
    yield ""
    yield (
        "A relative path (of `path`, `profiles`, a key that ends with `_file`, `sqlite:`) begins at the folder of the "
        "file that it stands in, wherever the program was started."
    )
    yield ""
    yield "A key that is not listed here is refused, with its path."
    yield ""
    yield "## The gateway: `forebay-edge run FILE`"
    yield ""
    yield from _table(GatewayConfig)
    for name, kind in SECTIONS.items():
        yield from _section(f"`[{name}]`", kind)
    yield from _section("`[source.NAME]`", SourceConfig, leave_out=("device", "options"))
    for name in installed("drivers"):
        yield from _section(f'`[source.NAME]` with `driver = "{name}"`', load("drivers", name).Options)
    yield "## Profiles"
    yield ""
    yield "A profile is a file `NAME.toml`. Those in the catalog:"
    yield ""
    for name in profile_names():
        profile = load_profile(name)
        yield f"- `{profile.name}`, version {profile.version}: {profile.description}"
    yield ""
    yield from _table(ProfileFile)
    yield from _section("`[channel.NAME]`", Channel)
    for name in installed("codecs"):
        yield from _section(f'`[codec]` with `name = "{name}"`', load("codecs", name).Options)
    for name in installed("filters"):
        yield from _section(f"`filters.{name}` of a channel", load("filters", name).Options)
    yield "## The ingester: `forebay-cloud run FILE`"
    yield ""
    for kind in _cloud_structs():
        yield from _section("", kind)
    sinks: dict[type[msgspec.Struct], list[str]] = {}
    for scheme in installed("sinks"):
        sinks.setdefault(load("sinks", scheme).Options, []).append(scheme)
    for kind, schemes in sinks.items():
        yield from _section(f"`[sink]` with a URL {' or '.join(f'`{scheme}:`' for scheme in schemes)}", kind)


def _structs() -> Iterator[type[msgspec.Struct]]:
    yield GatewayConfig
    yield from SECTIONS.values()
    yield SourceConfig
    yield ProfileFile
    yield Channel
    yield from _cloud_structs()
    for group in ("drivers", "codecs", "filters", "sinks"):
        yield from (load(group, name).Options for name in installed(group))


def _cloud_structs() -> list[type[msgspec.Struct]]:
    """The tables of the ingester's file: its structs that refuse unknown keys, in the order of the code."""
    return [
        kind
        for kind in vars(cloud.config).values()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__module__ == cloud.config.__name__
        and kind.__struct_config__.forbid_unknown_fields
    ]


def _section(title: str, kind: type[msgspec.Struct], leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    """A heading, what the struct says of itself, and its keys.

    A docstring "`[store]`: the one file." gives the heading, if there is no `title`, and the sentence.
    """
    text = inspect.cleandoc(kind.__doc__ or "")
    head, colon, sentence = text.partition("`: ")
    if text.startswith("`[") and colon:
        title, text = title or f"{head}`", sentence[:1].upper() + sentence[1:]
    yield f"### {title}"
    yield ""
    if text:
        yield text
        yield ""
    yield from _table(kind, leave_out)


def _table(kind: type[msgspec.Struct], leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    descriptions = _descriptions(kind)
    fields = [field for field in msgspec.structs.fields(kind) if field.name not in leave_out]
    if not fields:
        yield "It has no options of its own."
        yield ""
        return
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for field in fields:
        cells = (
            f"`{field.encode_name}`",
            _type(field.type),
            _default(field),
            descriptions.get(field.name, COMMON.get(field.name, "")),
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _descriptions(kind: type) -> dict[str, str]:
    """Field -> the text below it in the source, base classes included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not (issubclass(base, msgspec.Struct) and base is not msgspec.Struct):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = " ".join(text.value.value.split())
    return found


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    elif field.default is not msgspec.NODEFAULT:
        value = field.default
    else:
        return "required" if field.type is not Profile else "the driver's name"
    if value is None:
        return "none"
    if isinstance(value, Duration | Size | Rate):
        return f'`"{value}"`'
    if isinstance(value, str | bool | list | dict):
        return f"`{msgspec.json.encode(value).decode()}`"
    return f"`{value}`"


def _type(kind: Any) -> str:
    """The type as a person calls it."""
    if kind in SIMPLE_TYPES:
        return SIMPLE_TYPES[kind]
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{msgspec.json.encode(arg).decode()}`" for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(arg) for arg in args if arg is not type(None))
    if origin is list:
        return f"list of: {_type(args[0])}"
    if origin is tuple:
        return f"[{', '.join(_type(arg) for arg in args)}]"
    if origin is dict:
        return "table"
    return "table"


def main() -> int:
    """Write the document, or with `--check` say whether it is stale."""
    text = render()
    if "--check" not in sys.argv[1:]:
        OUTPUT.write_text(text, encoding="utf-8")
        return 0
    if OUTPUT.is_file() and OUTPUT.read_text(encoding="utf-8") == text:
        return 0
    print(f"{OUTPUT} is stale: run python docs/generate_configuration.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
