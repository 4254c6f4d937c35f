"""Downloads from a hub that cuts, flips and lies: nothing is fetched twice in vain, nothing damaged is kept."""

import time
from dataclasses import replace

import pytest

from mlx_qwen35.errors import DownloadError
from mlx_qwen35.hub.download import cached_snapshot
from mlx_qwen35.hub.http import Hub, Retry
from tests.hub.conftest import BIG, ID, QUICK, noise, repository
from tests.hub.downloading import assert_whole, blob, edited, fetch, part
from tests.support.fake_hub import FakeHub, Fault, git_blob_id, sha256


def test_a_cut_resumes_in_a_later_call_without_fetching_bytes_again(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(cut=100_000, times=1)
    with pytest.raises(DownloadError, match="Check the network and start again"):
        fetch(hub, Retry(attempts=1))
    assert part(hub).stat().st_size == 100_000
    assert cached_snapshot(ID, hub=hub) is None
    assert_whole(fetch(hub))
    assert fake.of(BIG)[-1].headers["range"] == "bytes=100000-"
    assert fake.of(BIG)[-1].headers["if-range"].startswith('"')
    assert fake.sent(BIG) == len(repository()[BIG])


def test_cuts_within_a_call_are_resumed(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(cut=90_000, times=3)
    assert_whole(fetch(hub))
    assert fake.sent(BIG) == len(repository()[BIG])


def test_a_hub_that_always_cuts_is_given_up(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(cut=1)
    with pytest.raises(DownloadError, match="what has arrived is kept"):
        fetch(hub)
    assert len(fake.of(BIG)) == QUICK.attempts


def test_a_byte_flipped_once_is_fetched_anew(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(flip=77_777, times=1)
    assert_whole(fetch(hub))


@pytest.mark.parametrize("path", [BIG, "config.json"])  # sha256 and git's sha1
def test_a_byte_always_flipped_is_refused(fake: FakeHub, hub: Hub, path: str) -> None:
    fake.faults[path] = Fault(flip=3)
    with pytest.raises(DownloadError, match="wrong content twice"):
        fetch(hub)
    content = repository()[path]
    names = {sha256(content), git_blob_id(content)}
    assert not any(file.name in names for file in hub.cache.rglob("*"))
    assert cached_snapshot(ID, hub=hub) is None


def test_a_damaged_part_of_an_earlier_run_is_noticed(hub: Hub) -> None:
    part(hub).parent.mkdir(parents=True)
    part(hub).write_bytes(noise(50_000, seed=9))
    assert_whole(fetch(hub))


def test_a_part_longer_than_the_file_is_dropped(hub: Hub) -> None:
    content = repository()[BIG]
    part(hub).parent.mkdir(parents=True)
    part(hub).write_bytes(content + b"more")
    assert_whole(fetch(hub))


def test_a_blob_cut_short_in_the_cache_is_completed(fake: FakeHub, hub: Hub) -> None:
    folder = fetch(hub)
    with blob(hub, repository()[BIG]).open("r+b") as file:
        file.truncate(1000)
    assert cached_snapshot(ID, hub=hub) is None
    fake.requests.clear()
    assert_whole(fetch(hub))
    assert (folder / BIG).is_symlink()
    assert fake.of(BIG)[0].headers["range"] == "bytes=1000-"


def test_a_dangling_shared_blob_is_replaced(hub: Hub) -> None:
    path = blob(hub, repository()[BIG])
    path.parent.mkdir(parents=True)
    path.symlink_to("../../blobs/00/gone")
    assert_whole(fetch(hub))


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, times=2),
        Fault(status=416, times=1),
        Fault(length=100, times=1),
        Fault(length=-100, times=1),
        Fault(cut=0, times=2),
    ],
    ids=["500", "416", "length too large", "length too small", "nothing"],
)
def test_passing_faults_are_overcome(fake: FakeHub, hub: Hub, fault: Fault) -> None:
    fake.faults[BIG] = replace(fault)
    assert_whole(fetch(hub))


@pytest.mark.parametrize(
    "fault",
    [Fault(ignore_range=True), Fault(shift=5, times=1), Fault(etag='"changed"'), Fault(etag='W/"weak"')],
    ids=["range ignored", "other range", "etag changed", "weak etag"],
)
def test_a_resume_the_server_does_not_honour_starts_anew_at_once(fake: FakeHub, hub: Hub, fault: Fault) -> None:
    fake.faults[BIG] = Fault(cut=100_000, times=1)
    with pytest.raises(DownloadError):
        fetch(hub, Retry(attempts=1))
    fake.faults[BIG] = replace(fault)
    assert_whole(fetch(hub))
    # Noticed from the answer's headers: no file was received whole only to fail its checksum.
    assert sum(request.sent == len(repository()[BIG]) for request in fake.of(BIG)) == 1
    assert len(fake.of(BIG)) == (3 if fault.shift else 2)


def test_more_bytes_than_listed_are_refused(fake: FakeHub, hub: Hub) -> None:
    fake.edit_listing = lambda listing: edited(listing, BIG, size=1000)
    with pytest.raises(DownloadError, match="wrong content twice"):
        fetch(hub)


def test_429_waits_as_long_as_asked(fake: FakeHub, hub: Hub) -> None:
    fake.faults[BIG] = Fault(status=429, headers={"Retry-After": "1"}, times=1)
    begin = time.monotonic()
    assert_whole(fetch(hub))
    assert time.monotonic() - begin >= 1  # no upper bound: the machine may be busy


def test_429_for_an_hour_is_a_line_and_not_a_wait(fake: FakeHub, hub: Hub) -> None:
    fake.faults[ID] = Fault(status=429, headers={"Retry-After": "3600"})
    with pytest.raises(DownloadError, match="60 minutes"):
        fetch(hub)
