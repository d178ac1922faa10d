"""A scene's good tiles stay beside it until its rejected ones were tried again, under cuts at every write."""

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segray.annotate.task import Annotate
from segray.bulk.committer import Committer
from segray.bulk.ledger_db import LedgerDb
from segray.bulk.merge_tiles import all_rejected, item_of, merged_or_rejected
from segray.bulk.results import results_table
from segray.output.lease import Lease
from segray.output.store import Store
from segray.predict.predictor import Labelled
from segray.scenes.scene import Scene
from segray.sources.item import Source, image_id
from tests.bulk.tables import VERB, answer, table
from tests.output.test_store import CutOffError, CutStore, open_store, rows

SCENE = Scene(100, 100, 64, 16)
TILES = range(len(SCENE.grid))
PLAIN = "a", "b"
"""Items without tiles, which are committed beside it."""


class Joining(Annotate):
    """A scene's row without instances."""

    def merge_tiles(self, tiles: pa.Table) -> pa.Table:
        return merged_or_rejected(
            tiles,
            lambda tiles, scene: results_table(item_of(tiles, scene), [all_rejected(tiles) or Labelled()]),
        )


@dataclass
class Job:
    """A run over a scene of four tiles: `bad` ones cannot be read now."""

    root: Path
    bad: tuple[int, ...]
    retry: bool = False
    version: str = "1"
    listed: bool = True
    computed: list[int] = field(default_factory=list)

    def run(self, store: Store | None = None) -> None:
        store = store or open_store(self.root)
        with LedgerDb() as ledger:
            ledger.add_sources(Source(uri, uri, "file", "1", 1) for uri in PLAIN)
            if self.listed:
                ledger.add_sources([Source("scene", "scene", "file", self.version, 1)])
            parts = store.recover()
            for part in parts:
                ledger.add_ledger(store, part)
            ledger.settle(keeps=True)
            if self.retry:
                ledger.forget_rejected()
            committer = Committer(store, ledger, Lease(store), parts, every_s=0, task=Joining(VERB.settings))
            committer.merge_whole_items()
            for source in list(ledger.todo_files()):
                if source.uri != "scene":
                    committer.add(table(answer(source.uri)))
                    continue
                done = ledger.done_tiles().get(image_id("scene", None, 0, self.version), [])
                for tile in set(TILES) - set(done):
                    self.computed.append(tile)
                    committer.add(table(self.tile(tile)))
            committer.finish()

    def tile(self, number: int) -> dict[str, Any]:
        window = SCENE.grid.window(number)
        row = answer("scene", self.version, 0, "storage" if number in self.bad else None)
        return row | {
            "tile": number, "scene": SCENE.to_json(), "height": window.height, "width": window.width,
        }  # fmt: skip


def scene_of(root: Path) -> dict[str, Any]:
    (row,) = [row for row in rows(root, "images") if row["uri"] == "scene" and not row["vanished"]]
    return row


def kept(root: Path) -> int:
    return len(list((root / "_segray/tiles").glob("*.parquet")))


def test_rejected_tiles_alone_are_tried_again(tmp_path: Path) -> None:
    first = Job(tmp_path, (1, 2))
    first.run()
    assert sorted(first.computed) == [*TILES]
    assert (scene_of(tmp_path)["tiles"], scene_of(tmp_path)["tiles_rejected"]) == (4, 2)
    assert kept(tmp_path) == 4
    for _ in range(2):  # nothing to do, and nothing is lost by it
        idle = Job(tmp_path, ())
        idle.run()
        assert idle.computed == []
        assert kept(tmp_path) == 4
    still = Job(tmp_path, (2,), retry=True)
    still.run()
    assert still.computed == [1, 2]
    assert scene_of(tmp_path)["tiles_rejected"] == 1
    last = Job(tmp_path, (), retry=True)
    last.run()
    assert last.computed == [2]
    assert scene_of(tmp_path)["tiles_rejected"] == 0
    assert kept(tmp_path) == 0
    assert Counter(row["uri"] for row in rows(tmp_path, "images")) == {"a": 1, "b": 1, "scene": 1}
    assert [row["status"] for row in rows(tmp_path, "tiles")] == 4 * ["annotated"]


def test_a_cut_anywhere_in_a_retry_costs_no_good_tile(tmp_path: Path) -> None:
    """Whether the next run tries again or not."""
    Job(tmp_path / "first", (1, 2)).run()
    cuts = 0
    while True:
        root = tmp_path / f"cut-{cuts}"
        shutil.copytree(tmp_path / "first", root)
        cut = Job(root, (1,), retry=True)
        try:
            cut.run(CutStore(root, cuts))
            break
        except CutOffError:
            pass
        idle = Job(root, ())
        idle.run()
        assert set(idle.computed) <= {1, 2}, f"cut {cuts}"
        row = scene_of(root)
        assert (row["tiles"], row["status"]) == (4, "annotated"), f"cut {cuts}"
        last = Job(root, (), retry=True)
        last.run()
        assert set(last.computed) <= {1, 2}, f"cut {cuts}"
        assert scene_of(root)["tiles_rejected"] == 0, f"cut {cuts}"
        assert kept(root) == 0
        assert len(rows(root, "images")) == 3
        assert len(rows(root, "tiles")) == 4
        cuts += 1
    assert cuts > 8


def test_tiles_of_a_scene_that_came_back_in_another_version_go(tmp_path: Path) -> None:
    Job(tmp_path, (1,)).run()
    assert kept(tmp_path) == 4
    new = Job(tmp_path, (), version="2")
    new.run()
    assert sorted(new.computed) == [*TILES]
    assert scene_of(tmp_path)["version"] == "2"
    assert kept(tmp_path) == 0


def test_tiles_of_a_scene_that_cannot_be_reached_wait_for_it(tmp_path: Path) -> None:
    Job(tmp_path, (1,)).run()
    Job(tmp_path, (), retry=True, listed=False).run()
    assert kept(tmp_path) == 3  # without the rejected one
    last = Job(tmp_path, (), retry=True)
    last.run()
    assert last.computed == [1]
    assert kept(tmp_path) == 0


@pytest.mark.parametrize("bad", [(0, 1, 2, 3), ()])
def test_nothing_is_kept_where_nothing_can_be_saved(bad: tuple[int, ...], tmp_path: Path) -> None:
    Job(tmp_path, bad).run()
    assert kept(tmp_path) == 0
    again = Job(tmp_path, (), retry=True)
    again.run()
    assert sorted(again.computed) == ([*TILES] if bad else [])
    assert scene_of(tmp_path)["tiles_rejected"] == 0
