"""Simulated serial devices on real ptys: heard, unplugged and plugged in again."""

from __future__ import annotations

import os
import time

import pytest
import serial

from simulators.ports import Port

LIMIT_S = 10.0


@pytest.fixture
def taken():
    return []


@pytest.fixture
def port(tmp_path, taken):
    port = Port(tmp_path / "pump", taken.append, greeting=b"# pump\n")
    yield port
    port.unplug()


@pytest.fixture
def listen(port):
    """Opens the link as a gateway does, and waits until the device talks to it."""
    opened = []

    def start() -> serial.Serial:
        line = serial.Serial(str(port.link), 9600, timeout=LIMIT_S)
        opened.append(line)
        poll_until(port, lambda: line.in_waiting)
        assert line.readline() == b"# pump\n"
        return line

    yield start
    for line in opened:
        line.close()


def poll_until(port, done):
    deadline_s = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        port.poll()
        time.sleep(0.01)


def test_nothing_is_sent_while_nobody_listens(port):
    assert not port.write(b"12.5\n", 1)


def test_lines_arrive_byte_for_byte_after_the_greeting(port, listen):
    line = listen()
    for number, text in enumerate([b"12.5;\x03\x11\x13\r\n", b"\xff\x00 \n"]):
        assert port.write(text, number)
        assert line.readline() == text


def test_a_line_is_taken_once_the_cable_has_held_for_a_while(port, listen, taken):
    listen()
    port.write(b"1\n", "one")
    port.poll()
    assert taken == []
    poll_until(port, lambda: taken)
    assert taken == ["one"]


def test_a_line_is_not_taken_when_the_cable_is_pulled_or_the_reader_goes(port, listen, taken):
    line = listen()
    port.write(b"1\n", "one")
    line.close()
    port.poll()
    line = listen()
    port.write(b"2\n", "two")
    port.unplug()
    port.plug()
    listen()
    port.write(b"3\n", "three")
    poll_until(port, lambda: taken)
    assert taken == ["three"]


def test_pulling_the_cable_ends_the_reader_and_plugging_it_in_brings_another_pty(port, listen):
    line = listen()
    before = os.readlink(port.link)
    port.unplug()
    assert not port.link.exists()
    with pytest.raises(serial.SerialException):
        line.readline()
    assert not port.write(b"1\n", 1)
    keep_number = os.openpty()  # so that the new pty cannot get the old one's number
    port.plug()
    assert os.readlink(port.link) != before
    again = listen()
    assert port.write(b"2\n", 2)
    assert again.readline() == b"2\n"
    for descriptor in keep_number:
        os.close(descriptor)


def test_a_line_for_which_there_is_no_room_is_void_and_spoils_no_other(port, listen):
    line = listen()
    length = 1000
    whole = [number for number in range(100) if port.write(b"%d" % number + b"x" * length + b"\n", number)]
    assert 0 < len(whole) < 100
    got = []
    while not port.write(b"after\n", "after"):
        got.append(line.readline())
    got += iter(line.readline, b"after\n")
    # What was torn ends where the next line begins, and is too short to be taken for one that was sent.
    assert [int(text.split(b"x")[0]) for text in got if len(text.lstrip(b"0123456789")) == length + 1] == whole


def test_an_orderly_end_lets_the_last_lines_be_read(port, listen, taken):
    line = listen()
    port.write(b"last\n", "last")
    port.close()
    assert taken == ["last"]
    line.close()
