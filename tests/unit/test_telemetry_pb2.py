"""The generated module is that of telemetry.proto, as the tools of this environment make it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from devices.wire import telemetry_pb2

pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed: `pip install -e .[dev]`")

ROOT = Path(__file__).parents[2]
AGAIN = "python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. devices/wire/telemetry.proto"


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"--descriptor_set_out={tmp_path}/set"]
    source = "devices/wire/telemetry.proto"
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, source], cwd=ROOT, check=True)
    return tmp_path


def test_the_generated_module_is_not_stale(generated: Path) -> None:
    fresh = FileDescriptorSet.FromString((generated / "set").read_bytes()).file[0]
    fresh.ClearField("source_code_info")
    for field in (field for message in fresh.message_type for field in message.field):
        field.ClearField("json_name")
    checked_in = type(fresh).FromString(telemetry_pb2.DESCRIPTOR.serialized_pb)
    assert checked_in == fresh, f"run `{AGAIN}`"


def test_the_types_are_those_of_the_generated_module(generated: Path) -> None:
    module, types = "devices/wire/telemetry_pb2.py", "devices/wire/telemetry_pb2.pyi"
    if (generated / module).read_text() != (ROOT / module).read_text():
        pytest.skip("made by another version of protoc, whose types may be written otherwise")
    assert (ROOT / types).read_text() == (generated / types).read_text(), f"run `{AGAIN}`"
