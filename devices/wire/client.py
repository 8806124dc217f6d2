"""paho's client with the bulk receive path: what paho does well stays paho's.

Of paho are: CONNECT and its answers, SUBSCRIBE, PUBLISH and its acknowledgement, PING, DISCONNECT, the queue
of packets to be sent. Replaced are: `loop_read` (one large read, messages handed on in batches, every other
packet given to paho's own handler), PUBACKs (many joined into one write, when the caller says so), and the
making of the socket (handed in by `attach`, so that nothing here blocks).

paho's methods that begin with an underscore are its inner structure; the ones used here are the same in 2.1
and 2.2, and tests/integration/test_session.py runs through each of them.
"""

from __future__ import annotations

import ssl
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from socket import socket
from sys import byteorder
from typing import Final

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MessageType, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from devices.errors import ForebayError, LinkLost
from devices.wire.receive import Inbound, PacketCutter, PacketRefused, malformed

READ_BYTES: Final = 256 * 1024
"""One read. Larger ones bring no speed, and this bounds what is handed on after `paused` was set."""

MAX_IN_FLIGHT: Final = 20
"""Published and not yet acknowledged by the broker. At 16 KiB a message a window of 1,000 is slower."""

_CONNACK, _DISCONNECT = MessageType.CONNACK, MessageType.DISCONNECT
_PUBACK_HEAD: Final = 0x4002  # PUBACK, two bytes follow


class BulkClient(Client):
    """One MQTT client whose connections follow one another. All calls come from the event loop's thread."""

    def __init__(
        self,
        client_id: str,
        *,
        version5: bool,
        clean_session: bool,
        max_packet_bytes: int,
        on_batch: Callable[[Inbound], None],
        on_confirmed: Callable[[int], None] | None,
    ) -> None:
        """`on_batch` gets messages in order of receipt, before an end of the link that came in after them.

        `on_confirmed(n)`: the broker has read n more of the acknowledgements, since it answered a ping
        that was sent after them. None: such pings are not sent.
        """
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if version5 else clean_session,
            protocol=MQTTProtocolVersion.MQTTv5 if version5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,  # else it would fall back to MQTT 3.1 by itself
            manual_ack=True,
        )
        self.bytes_in = 0
        self.bytes_out = 0
        self.connection = 0
        """Counts the connections that the broker accepted."""
        self.session_present = False
        self.paused = False
        self.last_read_bytes = 0
        self.last_read_messages = 0
        self.failure: ForebayError | None = None
        """Why the link ends, where more is known than paho's code says."""
        self.socket_error: OSError | None = None
        """What the socket failed with; None after the broker closed it."""
        self._cutter = PacketCutter(version5=version5, max_packet_bytes=max_packet_bytes)
        self._on_batch = on_batch
        self._on_confirmed = on_confirmed
        self._handed_in: socket | None = None
        self._acknowledged = 0
        self._confirmed = 0
        self._pings: deque[int] = deque()
        """For each PINGREQ that waits for its answer: how many acknowledgements went before it."""

    # --- the link ---

    def attach(self, sock: socket) -> None:
        """Begin a connection on a socket that is connected, TLS included: sends CONNECT."""
        self._cutter.reset()
        self._pings.clear()
        self._acknowledged = self._confirmed = 0
        self.failure = self.socket_error = None
        self._handed_in = sock
        self.reconnect()

    def _create_socket(self) -> socket:
        sock, self._handed_in = self._handed_in, None
        assert sock is not None, "attach() hands it in"
        return sock

    def abandon(self, failure: ForebayError) -> None:
        """End the link at once; `failure` says why. MQTT 5 brokers are told, if that can be done without waiting."""
        if self._sock is None:
            return
        self.failure = failure
        if isinstance(failure, PacketRefused) and self._protocol == MQTTProtocolVersion.MQTTv5 and self.is_connected():
            self._send_disconnect(ReasonCode(PacketTypes.DISCONNECT, identifier=failure.code))
            self.loop_write()
        if self._sock is not None:
            self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)

    def forget_outgoing(self) -> None:
        """Drop what paho would send again on the next connection: who published it decides about that."""
        self.drop_out_messages()
        self._out_packet.clear()

    def allow_in_flight(self, receive_maximum: int) -> None:
        """What the broker's CONNACK allows."""
        self._max_inflight_messages = min(MAX_IN_FLIGHT, receive_maximum)

    def next_id(self) -> int:
        """The next packet id, for a message that is refused before it is sent."""
        return self._mid_generate()

    # --- reading ---

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """One read, and everything in it. `last_read_bytes` and `last_read_messages` say how much came."""
        self.last_read_bytes = self.last_read_messages = 0
        if self._sock is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        try:
            data = self._receive()
        except BlockingIOError:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        except OSError as error:
            self.socket_error = error
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        if not data:
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        self.last_read_bytes = len(data)
        self.bytes_in += len(data)
        self._last_bytes_received = now = time.monotonic()
        if self._ping_t:
            # The answer to a ping waits behind the messages that the broker sends: while those come, it lives.
            self._ping_t = now
        self._cutter.feed(data)
        try:
            return self._hand_on()
        except PacketRefused as refused:
            self.abandon(refused)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        except Exception:
            # Whoever takes the messages failed. What this read brought must come again, not be lost.
            self.abandon(LinkLost("messages could not be handed on: a bug of Forebay, its traceback is in the log"))
            raise

    def _receive(self) -> bytes:
        data = self._sock_recv(READ_BYTES)
        if not isinstance(self._sock, ssl.SSLSocket) or not data:
            return data
        # OpenSSL gives one record of at most 16 KiB a call.
        records, total = [data], len(data)
        while total < READ_BYTES:
            try:
                # Always more than a record: a part of one would stay inside OpenSSL, where no selector sees it.
                data = self._sock_recv(READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                break  # the next read meets it again, after these messages are handed on
            if not data:
                break
            records.append(data)
            total += len(data)
        return b"".join(records)

    def _hand_on(self) -> MQTTErrorCode:
        batch = Inbound(self.connection, self.session_present)
        try:
            while (packet := self._cutter.cut(batch)) is not None:
                first, body = packet
                begins_or_ends = first & 0xF0 in (_CONNACK, _DISCONNECT)
                if begins_or_ends:
                    self._deliver(batch)
                    batch = Inbound(self.connection, self.session_present)  # nothing is handed on twice
                code = self._give_to_paho(first, body)
                if code > 0:
                    self._deliver(batch)
                    return self._loop_rc_handle(code)
                if self._sock is None:
                    return MQTTErrorCode.MQTT_ERR_NO_CONN
                if begins_or_ends:
                    batch = Inbound(self.connection, self.session_present)
        except PacketRefused:
            self._deliver(batch)
            raise
        self._deliver(batch)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _deliver(self, batch: Inbound) -> None:
        if not len(batch):
            return
        if not self.is_connected():
            raise malformed("a message before the connection was accepted")
        self.last_read_messages += len(batch)
        self._on_batch(batch)

    def _give_to_paho(self, first: int, body: bytes) -> MQTTErrorCode:
        if not self.is_connected() and first & 0xF0 != _CONNACK:
            raise malformed("another packet where the answer to CONNECT should be")
        packet = self._in_packet
        packet["command"], packet["packet"], packet["remaining_length"] = first, bytearray(body), len(body)
        packet["pos"] = 0
        try:
            return self._packet_handle()
        except MalformedPacket:
            raise malformed(f"a broken packet of type {first >> 4}") from None

    # --- writing ---

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            sent = super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.socket_error = self._tls_alert() or error
            raise
        self.bytes_out += sent
        self._last_msg_out = time.monotonic()  # paho forgets to, and would ping a busy link
        return sent

    def _tls_alert(self) -> ssl.SSLError | None:
        """Why a broker ended TLS, which lies unread behind a failed write (TLS 1.3 refuses certificates so)."""
        if isinstance(self._sock, ssl.SSLSocket):
            try:
                self._sock_recv(1)
            except ssl.SSLError as alert:
                return alert
            except OSError:
                return None
        return None

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Queue PUBACKs as one write, in the order given."""
        words = array("H", [_PUBACK_HEAD]) * (2 * len(packet_ids))
        words[1::2] = array("H", packet_ids)
        if byteorder == "little":
            words.byteswap()
        self._packet_queue(MessageType.PUBACK, words.tobytes(), 0, 1)
        self._acknowledged += len(packet_ids)
        self._ask_for_confirmation()

    def _ask_for_confirmation(self) -> None:
        """One ping at a time: the answer to it sends the next, if there is something new to confirm."""
        if self._on_confirmed is not None and self._acknowledged > self._confirmed and not self._pings:
            self._send_pingreq()

    # --- keepalive ---

    def _send_pingreq(self) -> MQTTErrorCode:
        self._pings.append(self._acknowledged)
        return super()._send_pingreq()

    def _handle_pingresp(self) -> MQTTErrorCode:
        code = super()._handle_pingresp()
        if self._pings:
            upto = self._pings.popleft()
            confirmed, self._confirmed = upto - self._confirmed, upto
            self._ask_for_confirmation()
            if self._on_confirmed is not None and confirmed:
                self._on_confirmed(confirmed)
        return code

    def loop_misc(self) -> MQTTErrorCode:
        """Ping when it is time, end the link when the last ping was not answered. `seconds_to_misc` says when next."""
        if self.paused:
            # Nobody reads, so the answer cannot be seen: pings go out, and none is demanded back.
            self._ping_t = 0.0
            self._last_bytes_received = time.monotonic()
        return super().loop_misc()

    def resume(self) -> None:
        """Demand answers again, from now on."""
        self.paused = False
        self._last_bytes_received = now = time.monotonic()
        if self._ping_t:
            self._ping_t = now

    def seconds_to_misc(self) -> float:
        """Until `loop_misc` has something to do, in s; infinite without keepalive."""
        if not self._keepalive:
            return float("inf")
        since = self._last_msg_out
        if not self.paused:
            since = min(since, self._last_bytes_received, self._ping_t or since)
        return max(since + self._keepalive - time.monotonic(), 0.0)
