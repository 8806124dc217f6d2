"""What a gateway says of frames that the cloud did not take."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from devices.wire.frame import Frame, SummaryBody
from devices.wire.receipt import Receipt, Rejected
from edge.receipts import SAID_MAX, SAY_AGAIN_S
from tests.unit.test_reload import Gateway, tell


def lines(caplog: pytest.LogCaptureFixture, beginning: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(beginning)]


def test_a_frame_of_which_the_sink_rejects_many_series_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def conflict(frame: Frame) -> Receipt:
        bad = [Rejected(series, "sink", 1, "field type conflict") for series in range(900)]
        odd = Rejected(0, "expired", 2, "beyond the retention")
        return Receipt(rejected=[*bad, odd]) if isinstance(frame.body, SummaryBody) else Receipt()

    async def story(gateway: Gateway) -> None:
        gateway.link.answer = conflict
        await gateway.read(3)
        await asyncio.sleep(30)
        letters = await gateway.letters.list()
        assert letters[0]["detail"] == "900 sink: field type conflict; 2 expired: beyond the retention"

    tell(tmp_path, story)
    told = lines(caplog, "the sink rejected")
    assert len(told) == 1
    assert told[0].startswith("the sink rejected 902 samples of 900 series in frame ")
    assert told[0].endswith(": sink: field type conflict (and for other reasons)")


@pytest.mark.parametrize(
    ("answer", "beginning"),
    [
        (Receipt(rejected=[Rejected(0, "sink", 1, "field type conflict")]), "the sink rejected"),
        (Receipt(refused="quota"), "the cloud refused"),
    ],
)
def test_what_befalls_every_frame_is_said_once_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: Receipt, beginning: str
) -> None:
    minutes = 4

    async def story(gateway: Gateway) -> None:
        gateway.link.answer = lambda frame: answer if isinstance(frame.body, SummaryBody) else Receipt()
        await gateway.read(minutes * int(SAY_AGAIN_S))
        await asyncio.sleep(30)
        assert len(await gateway.letters.list()) > 3 * minutes

    tell(tmp_path, story)
    told = lines(caplog, beginning)
    assert minutes - 1 <= len(told) <= minutes + 1
    assert "frames before it, unsaid" not in told[0]
    assert "so with 5 frames before it, unsaid" in told[1]


def test_a_sink_that_finds_new_words_each_time_fills_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(gateway: Gateway) -> None:
        receipts = gateway.pump.receipts
        for number in range(10 * SAID_MAX):
            receipts._say(f"reason {number}", f"the sink rejected {number}")
        assert len(receipts._said) == SAID_MAX
        await asyncio.sleep(SAY_AGAIN_S)
        receipts._say("another", "the sink rejected another")

    tell(tmp_path, story)
    told = lines(caplog, "the sink rejected")
    assert len(told) == SAID_MAX + 1
    assert told[-1] == "the sink rejected another"
