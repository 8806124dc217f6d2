"""Simulated MQTT devices against a real broker: nothing that it has not acknowledged is forgotten."""

from __future__ import annotations

import threading
import time

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from simulators.publishers import Publisher

pytestmark = pytest.mark.real
LIMIT_S = 20.0


class Listener:
    """Subscribes to everything, again after every reconnect."""

    def __init__(self, broker):
        self.payloads: list[bytes] = []
        self.subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "listener", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe("#", 1)
        self._client.on_subscribe = lambda *_: self.subscribed.set()
        self._client.on_disconnect = lambda *_: self.subscribed.clear()
        self._client.on_message = lambda _client, _data, message: self.payloads.append(message.payload)
        self._client.connect_async(broker.host, broker.port)
        self._client.loop_start()

    def wait(self):
        assert self.subscribed.wait(LIMIT_S)

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(mosquitto):
    return mosquitto()


@pytest.fixture
def settled():
    return []


@pytest.fixture
def publisher(broker, settled):
    publisher = Publisher(broker.url, "devices", lambda token, heard: settled.append((token, heard)))
    yield publisher
    publisher.close()


@pytest.fixture
def listener(broker):
    listener = Listener(broker)
    yield listener
    listener.close()


def poll_until(publisher, done):
    deadline_s = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        publisher.poll()
        time.sleep(0.01)


def publish(publisher, numbers):
    for number in numbers:
        publisher.publish("plant/press/temperature", b"%d" % number, number)


def test_each_message_is_acknowledged_once_and_arrives(publisher, listener, settled):
    listener.wait()
    publish(publisher, range(500))
    poll_until(publisher, lambda: len(settled) == 500 and len(listener.payloads) == 500)
    assert sorted(settled) == [(number, True) for number in range(500)]
    assert [int(payload) for payload in listener.payloads] == list(range(500))
    assert publisher.unacknowledged == 0


def test_a_message_that_nobody_subscribes_to_is_reported_as_unheard(publisher, settled):
    publish(publisher, [7])
    poll_until(publisher, lambda: settled)
    assert settled == [(7, False)]


def test_what_the_broker_has_not_acknowledged_goes_out_again_when_it_is_back(publisher, broker, listener, settled):
    listener.wait()
    broker.suspend()
    publish(publisher, range(300))
    publisher.poll()
    assert publisher.unacknowledged == 300
    broker.kill()
    listener.subscribed.clear()
    publish(publisher, range(300, 400))
    broker.start()
    poll_until(publisher, lambda: len(settled) == 400)
    assert sorted(token for token, _ in settled) == list(range(400))
    heard = {token for token, heard in settled if heard}
    poll_until(publisher, lambda: heard <= {int(payload) for payload in listener.payloads})
