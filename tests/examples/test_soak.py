"""The soak in small: nobody lost, nobody's answer given to another, nothing kept."""

from __future__ import annotations

import pytest

from examples.benchmarks.soak import Load, soak


@pytest.mark.slow
def test_a_crowd_leaves_the_server_as_it_was() -> None:
    report = soak(Load(seconds=20, steady=40, slow=10, vanish=10, queue=8, warm_up=10))
    assert report.faults == []
    assert report.counts["steady answered"] > 0
    assert report.counts["refused with 429"] > 0
    assert report.counts["vanished"] > 0
