"""What a broker's reason codes mean: each as an error with a sentence that says what to do.

Source: MQTT 5.0 (OASIS), 2.4, 3.2.2.2 (CONNACK) and 3.14.2.1 (DISCONNECT). The return codes 1 to 5 of MQTT
3.1.1 are turned into these by paho. Names of users and clients are shown, passwords never.
"""

from __future__ import annotations

import enum

from paho.mqtt.reasoncodes import ReasonCode

from devices.errors import ForebayError, IdentityTaken, LinkLost, LoginRefused, Unreachable


class Reason(enum.IntEnum):
    """The reason codes that have a sentence of their own."""

    UNSPECIFIED = 0x80
    UNSUPPORTED_VERSION = 0x84
    BAD_CLIENT_ID = 0x85
    BAD_LOGIN = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SHUTTING_DOWN = 0x8B
    BAD_METHOD = 0x8C
    KEEPALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    PACKET_TOO_LARGE = 0x95
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE = 0x98
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B


def connection_refused(reason: ReasonCode, where: str, client_id: str, username: str) -> ForebayError:
    """For a CONNACK that refuses. `where` names the broker ("the broker HOST:PORT")."""
    who = f"user {username!r}" if username else "a client without a user"
    match reason.value:
        case Reason.BAD_LOGIN:
            return LoginRefused(
                f"{where} refuses the user name or password of {who}: check user, password_file, password_env"
            )
        case Reason.NOT_AUTHORIZED:
            return LoginRefused(
                f"{where} does not let {who} in as client {client_id!r}: check user, password_file, password_env, and "
                "who may come in there (mosquitto says so for a wrong password, too)"
            )
        case Reason.BANNED:
            return LoginRefused(f"{where} has banned {who} or client {client_id!r}: ask its administrator")
        case Reason.BAD_METHOD:
            return LoginRefused(f"{where} wants a way of authentication that Forebay does not know")
        case Reason.BAD_CLIENT_ID:
            return LoginRefused(f"{where} does not accept the client id {client_id!r}: choose another client_id")
        case Reason.UNSUPPORTED_VERSION:
            return Unreachable(f'{where} does not speak this version of MQTT: set protocol = "3.1.1", or back to "5"')
        case Reason.SERVER_UNAVAILABLE | Reason.SERVER_BUSY:
            return Unreachable(f"{where} is busy or not ready: it is tried again")
        case Reason.QUOTA_EXCEEDED:
            return Unreachable(f"{where} is full (quota exceeded): raise its limit of connections; it is tried again")
        case Reason.QOS_NOT_SUPPORTED | Reason.RETAIN_NOT_SUPPORTED:
            return Unreachable(f"{where} does not support QoS 1 or retained messages: Forebay needs a broker that does")
        case _:
            return Unreachable(f"{where} refuses the connection ({reason}): its log says more")


def connection_ended(reason: ReasonCode, where: str, client_id: str) -> ForebayError:
    """For a DISCONNECT that the broker sent."""
    match reason.value:
        case Reason.SESSION_TAKEN_OVER:
            return IdentityTaken(
                f"another client connected to {where} as {client_id!r}: two gateways or programs use one identity "
                "(a clone); give each a name of its own"
            )
        case Reason.NOT_AUTHORIZED:
            return LoginRefused(f"{where} does not allow what client {client_id!r} did: check its ACL")
        case Reason.SHUTTING_DOWN:
            return LinkLost(f"{where} is shutting down")
        case Reason.KEEPALIVE_TIMEOUT:
            return LinkLost(f"{where} heard nothing of us for too long: the network was away, or this machine stalled")
        case Reason.RECEIVE_MAXIMUM_EXCEEDED:
            return LinkLost(f"{where} says that too much was published at once")
        case Reason.PACKET_TOO_LARGE:
            return LinkLost(f"{where} does not take a message as large as the last: raise its max_packet_size")
        case Reason.SERVER_BUSY | Reason.QUOTA_EXCEEDED:
            return LinkLost(f"{where} is full or busy ({reason}): check its quotas; it is tried again")
        case Reason.ADMINISTRATIVE:
            return LinkLost(f"the administrator of {where} ended the connection")
        case _:
            return LinkLost(f"{where} ended the connection ({reason}): its log says more")


def subscription_refused(filters: list[str], where: str, username: str) -> str:
    """The sentence for filters that a SUBACK refuses."""
    names = ", ".join(filters[:5]) + (f" and {len(filters) - 5} more" if len(filters) > 5 else "")
    who = f"user {username!r}" if username else "clients without a user"
    return f"{where} refuses the subscription to {names}: let its ACL allow {who} to read it"


def publication_refused(topic: str, where: str, username: str) -> str:
    """The sentence for a topic whose messages a PUBACK refuses for want of a right."""
    who = f"user {username!r}" if username else "clients without a user"
    return f"{where} does not take what is published to {topic}: let its ACL allow {who} to write it"
