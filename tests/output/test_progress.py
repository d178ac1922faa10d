"""What a progress line says, and what it does not say yet; the clock is ours."""

import pytest

from segray.output.progress import Progress, clock, pace
from segray.scenes.scene import Scene

SCENE = Scene(height=100, width=300, tile=100, overlap=0).to_json()
"""Three tiles."""


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds; to be moved."""
    time = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: time[0])
    return time


def last(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    return lines[-1] if lines else ""


def test_a_slow_pace_is_told_in_seconds() -> None:
    assert pace(3.21) == "3.2 images/s"
    assert pace(1.0) == "1.0 images/s"
    assert pace(0.25) == "4.0 s/image"
    assert pace(1 / 1500, "tile") == "1,500.0 s/tile"
    assert clock(3766.9) == "1:02:46"


def test_the_warm_up_is_no_part_of_what_is_left(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A minute until the first of 120 images, then two a second."""
    with Progress("annotate") as shown:
        shown.total = 120
        assert last(capsys) == "segray: annotate: 0 of 120 images, 0 instances, 0 rejected"
        now[0] += 60
        for step in range(10):
            shown.add(4, instances=8)
            assert (" left" in shown._line()) == (2 * step >= 10)
            now[0] += 2
        now[0] += 10
        shown.add(24)
        assert last(capsys).startswith("segray: annotate: 64 of 120 images, 2.0 images/s, 80 instances")
        now[0] += 10
        shown.add(20, rejected=1)
        told = last(capsys)
        assert (
            told == "segray: annotate: 84 of 120 images, 2.0 images/s, 80 instances, 1 rejected, 0:00:18 left"
        )


def test_images_and_tiles_are_told_apart(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("predict", 4, finds=False) as shown:
        assert shown.see_tiles(["a", "b", "c"], [SCENE, None, SCENE]) == 2
        shown.add(1, tiles=2)
        assert (shown.images, shown.tiles) == (1, 2)
        assert shown.see_tiles(["a", "a"], [SCENE, SCENE]) == 2
        shown.add(0, tiles=2)
        assert (shown.images, shown.tiles) == (2, 4)
    assert last(capsys) == ""  # nothing was told before, so the summary says it
    assert shown._done_of() == (6, 6 + 2 + 1)  # of c two tiles are left, one image is not begun


def test_what_earlier_runs_did_counts_but_not_into_the_pace(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("annotate") as shown:
        shown.recount(50, 7, {"a": 2})
        shown.total = 100
        for _ in range(6):
            now[0] += 5
            shown.add(1)
        assert "56 of 100 images, 7 tiles, 5.0 s/tile" in last(capsys)
        assert shown.see_tiles(["a", "a"], [SCENE, SCENE]) == 2
        assert (shown.images, shown.tiles) == (57, 9)


def test_listing_tells_no_pace(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("listing") as shown:
        for _ in range(9):
            now[0] += 9
            shown.add(1000)
    assert last(capsys) == "segray: listing: 9,000 images"
