"""Frames among the dead letters: brought back into the outbox, by the store that sent them and by one after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from devices.model import SECOND_NS
from devices.wire.frame import Frame, SummaryBody
from devices.wire.receipt import Receipt
from edge.letters import Letters
from edge.storefile import set_aside
from tests.unit.test_pump import T0_NS, Gateway, batch, series, until
from tests.unit.test_pump import tell as tell


def letters_of(gateway: Gateway) -> Letters:
    letters = Letters(gateway.store, gateway.sealer, gateway.pump._intake, gateway.uplink)
    letters.pump = gateway.pump
    return letters


@pytest.mark.parametrize("is_lost", [False, True], ids=["the same store", "one after it was set aside"])
def test_a_frame_that_the_cloud_refused_is_sent_again_and_its_points_have_their_keys(
    tell: Callable[..., Gateway], tmp_path: Path, is_lost: bool
) -> None:
    numbers: set[int] = set()

    def refuse(frame: Frame) -> Receipt:
        if not isinstance(frame.body, SummaryBody):
            return Receipt()
        numbers.add(frame.header.seq)
        return Receipt(refused="version")

    async def feed(gateway: Gateway, second: int) -> None:
        gateway.now_ns = T0_NS + second * SECOND_NS
        before = gateway.feed.acknowledged
        gateway.feed.put(batch(3, [gateway.now_ns], np.random.default_rng(second)))
        await until(lambda: gateway.feed.acknowledged > before)

    async def refused(gateway: Gateway) -> None:
        gateway.link.answer = refuse
        gateway.connect()
        series(gateway, 3)
        for second in range(3):
            await feed(gateway, second)
        await until(lambda: gateway.totals()["rejected"] == 6 and len(gateway.uplink.outbox) == 0)

    async def replayed(gateway: Gateway) -> None:
        series(gateway, 3)
        second = 100
        while is_lost and not all(gateway.uplink.outbox.find(number) for number in numbers):
            second += 1  # the new store gives the numbers of the refused frames to others
            await feed(gateway, second)
        letters = letters_of(gateway)
        for letter in await letters.list():
            assert await letters.replay(letter["id"]) == ""
            assert await letters.replay(letter["id"]) in ("it is being replayed already", None)
        gateway.connect()
        await until(lambda: len(gateway.uplink.outbox) == 0 and len(gateway.link.points) >= 6)
        assert await letters.list() == []

    before = tell(refused, crash=True)
    if is_lost:
        set_aside(tmp_path / "store" / "edge.db", "found damaged")
    after = tell(replayed)
    assert len(before.link.points) == 6
    assert all(repr(after.link.points[key]) == repr(row) for key, row in before.link.points.items())  # with NaNs
    after.balance()
