"""Prometheus text: read back by prometheus-client's own parser."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.metrics import BUCKETS_S, Histogram, family, histogram_lines, label_text


def parse(lines: list[str]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for found in text_string_to_metric_families("\n".join(lines) + "\n")
        for sample in found.samples
    }


def test_a_histogram_counts_up_to_and_including_its_edges() -> None:
    histogram = Histogram()
    for duration_s in (0.0005, 0.0006, 0.25, 1e6, -3.0):
        histogram.observe(duration_s)
    histogram.observe(2.0, times=10)
    samples = parse(histogram.lines("forebay_x_seconds", "Some duration", {"stage": "commit"}))
    stage = ("stage", "commit")
    assert samples["forebay_x_seconds_bucket", (("le", "0.0005"), stage)] == 2
    assert samples["forebay_x_seconds_bucket", (("le", "0.001"), stage)] == 3
    assert samples["forebay_x_seconds_bucket", (("le", "86400"), stage)] == 14
    assert samples["forebay_x_seconds_bucket", (("le", "+Inf"), stage)] == 15
    assert samples["forebay_x_seconds_count", (stage,)] == 15
    assert samples["forebay_x_seconds_sum", (stage,)] == pytest.approx(1e6 + 20.2511)


def test_a_quantile_is_the_upper_edge_of_its_bucket() -> None:
    histogram = Histogram()
    assert math.isnan(histogram.quantile_s(0.5))
    for _ in range(98):
        histogram.observe(0.004)
    histogram.observe(3.0)
    histogram.observe(1e9)
    assert histogram.quantile_s(0.5) == 0.005
    assert histogram.quantile_s(0.99) == 5.0
    assert histogram.quantile_s(1.0) == math.inf
    assert sorted(BUCKETS_S) == list(BUCKETS_S)


def test_hostile_names_cannot_break_the_text() -> None:
    device = 'pump "1"\\\n} 5\nforebay_fake 1'
    lines = family("forebay_up", "gauge", "Up", [({"device": device}, 1.5), ({"device": "b"}, math.nan)])
    samples = parse(lines)
    assert samples["forebay_up", (("device", device),)] == 1.5
    assert math.isnan(samples["forebay_up", (("device", "b"),)])
    assert len(samples) == 2


@pytest.mark.parametrize("value", [0, 1234567890123456, 0.1, -1e300, math.inf, -math.inf, 1e15])
def test_numbers_come_back_as_they_were(value: float) -> None:
    assert parse(family("forebay_n_total", "counter", "N", value)) == {("forebay_n_total", ()): value}


def test_several_histograms_share_one_head() -> None:
    lines = histogram_lines(
        "forebay_s_seconds", "S", {label_text({"stage": "a"}): Histogram(), label_text({"stage": "b"}): Histogram()}
    )
    assert sum(line.startswith("# TYPE") for line in lines) == 1
    assert {labels for name, labels in parse(lines) if name.endswith("_count")} == {
        (("stage", "a"),),
        (("stage", "b"),),
    }
