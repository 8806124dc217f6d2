"""A load of MQTT messages, published as fast as the broker takes them, or at a rate.

    python -m benchmarks.load --port 1883 --count 100000 [--rate 5000] [--payload TEMPLATE]

It runs as a process of its own and costs as little as it can, since it shares two cores with what is measured:
every PUBLISH packet (MQTT 3.1.1, QoS 1) is encoded before the first is sent, and only PUBACKs are counted.

Templates know `{n}` (0, 1, ...), `{device}` (n modulo --devices), `{time_ns}` and `{time_ms}` (--start-ns + n *
--step-ns) and `{value}`; payloads are padded with spaces to --bytes. It prints one JSON object: sent, seconds, per_s.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import struct
import subprocess
import sys
import time

PAYLOAD = '{{"time": {time_ms}, "value": {value}}}'
TOPIC = "plant/press-{device}/temperature"
WINDOW = 2000
"""Published and not acknowledged at most. The broker's own limit is reached from a few hundred on."""

CONNACK_BYTES, PUBACK_BYTES = 4, 4


def start(port: int, count: int, *options: str) -> subprocess.Popen[str]:
    """The loader as a child process. Call `go` once what is measured stands ready."""
    argv = [sys.executable, "-m", "benchmarks.load", "--port", str(port), "--count", str(count), "--wait", *options]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()  # "ready": everything is encoded
    return child


def go(child: subprocess.Popen[str]) -> None:
    """Let it publish."""
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def finish(child: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for its end; its figures."""
    out, _ = child.communicate()
    figures: dict[str, float] = json.loads(out.splitlines()[-1])
    return figures


def publish_packet(topic: str, payload: bytes, packet_id: int) -> bytes:
    name = topic.encode()
    remaining = 2 + len(name) + 2 + len(payload)
    head = bytearray([0x32])
    while remaining > 127:
        head.append(remaining & 127 | 128)
        remaining >>= 7
    head.append(remaining)
    return bytes(head) + struct.pack("!H", len(name)) + name + struct.pack("!H", packet_id) + payload


def encode_all(arguments: argparse.Namespace) -> list[bytes]:
    """One packet a message, in order."""
    start_ns = arguments.start_ns or time.time_ns()
    packets = []
    for n in range(arguments.count):
        time_ns = start_ns + n * arguments.step_ns
        fields = {
            "n": n,
            "device": n % arguments.devices,
            "time_ns": time_ns,
            "time_ms": time_ns // 1_000_000,
            "value": f"{20 + (n * 7919 % 1000) / 100:.2f}",
        }
        payload = arguments.payload.format(**fields).encode().ljust(arguments.bytes)
        packets.append(publish_packet(arguments.topic.format(**fields), payload, n % 65_535 + 1))
    return packets


def connect(host: str, port: int, client_id: str = "forebay-load") -> socket.socket:
    sock = socket.create_connection((host, port))
    body = b"\x00\x04MQTT\x04\x02\x00\x00" + struct.pack("!H", len(client_id)) + client_id.encode()
    sock.sendall(bytes([0x10, len(body)]) + body)
    answer = sock.recv(CONNACK_BYTES, socket.MSG_WAITALL)
    if answer[-1:] != b"\x00":
        raise SystemExit(f"the broker at {host}:{port} refuses the loader (CONNACK {answer.hex()})")
    return sock


def send_all(sock: socket.socket, packets: list[bytes], window: int, per_s: float) -> float:
    """Publish everything and wait for every PUBACK; returns seconds."""
    sock.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    began = time.perf_counter()
    sent = acknowledged = 0
    answered_bytes = 0
    pending = b""
    while acknowledged < len(packets):
        allowed = min(len(packets), acknowledged + window)
        if per_s:
            allowed = min(allowed, int((time.perf_counter() - began) * per_s) + 1)
        if not pending and sent < allowed:
            pending = b"".join(packets[sent:allowed])
            sent = allowed
        if pending:
            try:
                pending = pending[sock.send(pending) :]
            except BlockingIOError:
                selector.modify(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        timeout_s = 0.002 if per_s and not pending else 30.0
        if not selector.select(timeout_s) and timeout_s > 1:
            raise SystemExit(f"the broker acknowledged {acknowledged} of {len(packets)} messages and then no more")
        selector.modify(sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if pending else 0))
        try:
            data = sock.recv(65_536)
        except BlockingIOError:
            continue
        if not data:
            raise SystemExit(f"the broker closed the connection after {acknowledged} messages")
        answered_bytes += len(data)
        acknowledged = answered_bytes // PUBACK_BYTES
    selector.close()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True, help="messages")
    parser.add_argument("--rate", type=float, default=0, help="messages/s; 0: as fast as the broker takes them")
    parser.add_argument("--payload", default=PAYLOAD, help="template")
    parser.add_argument("--topic", default=TOPIC, help="template")
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--bytes", type=int, default=120, help="payloads are padded to this many")
    parser.add_argument("--start-ns", type=int, default=0, help="time of the first message; 0: now")
    parser.add_argument("--step-ns", type=int, default=1_000_000, help="between the times of two messages")
    parser.add_argument("--window", type=int, default=WINDOW, help="messages in flight at most")
    parser.add_argument("--wait", action="store_true", help="say `ready` when all is encoded, begin at a line on stdin")
    arguments = parser.parse_args()
    packets = encode_all(arguments)
    with connect(arguments.host, arguments.port) as sock:
        if arguments.wait:
            print("ready", flush=True)
            sys.stdin.readline()
        seconds = send_all(sock, packets, arguments.window, arguments.rate)
    print(json.dumps({"sent": len(packets), "seconds": seconds, "per_s": len(packets) / seconds}))


if __name__ == "__main__":
    main()
