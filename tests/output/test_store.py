"""The output folder under cuts at every single write and delete."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from segray import schema
from segray.bulk import committer as committer_module
from segray.bulk.committer import Committer
from segray.bulk.ledger_db import LedgerDb
from segray.errors import JobFailedError, SettingsError
from segray.output.lease import Lease
from segray.output.store import Store
from segray.sources.item import Source
from segray.storage import StorageSettings
from tests.bulk.tables import VERB, answer, end, table


class CutOffError(Exception):
    """The process dies here."""


class CutStore(Store):
    """A store whose process dies before its `cut`-th write or delete."""

    def __init__(self, root: Path, cut: int) -> None:
        super().__init__(str(root), StorageSettings())
        self.left = cut

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise CutOffError

    def write(self, name: str, data: bytes) -> None:
        self._step()
        super().write(name, data)

    def create(self, name: str, data: bytes) -> None:
        self._step()
        super().create(name, data)

    def delete(self, name: str) -> None:
        self._step()
        super().delete(name)


def rows(root: Path, folder: str) -> list[dict[str, Any]]:
    files = sorted((root / folder).glob("*.parquet"))
    found = [row for file in files for row in pq.read_table(file).to_pylist()]
    return sorted(found, key=lambda row: (row["image_id"], row.get("instance_id") or ""))


def open_store(root: Path) -> Store:
    return Store(str(root), StorageSettings())


def seed(root: Path) -> None:
    """An output of yesterday: `old` has changed since, `gone` is no longer listed, `bad` was rejected."""
    store = open_store(root)
    answers = [
        answer("old", instances=3),
        answer("gone"),
        answer("bad", error_type="storage"),
        answer("kept"),
    ]
    store.merge([store.commit(table(*answers[:2])), store.commit(table(*answers[2:]))])


def run(store: Store) -> None:
    """The job of today, with as many commits and merges as possible."""
    with LedgerDb() as ledger:
        names = [("old", "2"), ("bad", "1"), ("kept", "1"), ("new", "1"), ("newer", "1")]
        ledger.add_sources(Source(uri, uri, "file", version, 1) for uri, version in names)
        ledger.add_sources([Source("t.tar", "t.tar", "tar", "1", 1)])
        parts = store.recover()
        for part in parts:
            ledger.add_ledger(store, part)
        ledger.forget_rejected()
        committer = Committer(store, ledger, Lease(store), parts, every_s=0, task=VERB)
        for file in list(ledger.todo_files()):
            committer.add(table(answer(file.uri, file.version)))
        for archive in list(ledger.todo_archives()):
            committer.add(table(end("t.tar", 2)))
            for index in (1, 4):
                if index not in archive:
                    committer.add(table(answer("t.tar", member=index)))
        committer.finish()


def test_a_cut_anywhere_ends_with_the_rows_of_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer_module, "MERGE_BYTES", 20_000)  # about two commits
    seed(tmp_path / "whole")
    run(open_store(tmp_path / "whole"))
    cuts = 0
    while True:
        root = tmp_path / f"cut-{cuts}"
        seed(root)
        try:
            run(CutStore(root, cuts))
            break
        except CutOffError:
            run(open_store(root))
        for folder in ("images", "instances"):
            assert rows(root, folder) == rows(tmp_path / "whole", folder), f"{folder}, cut {cuts}"
        assert not list((root / "_segray/staging").glob("*"))
        cuts += 1
    assert cuts > 20
    assert {row["uri"]: row["vanished"] for row in rows(tmp_path / "whole", "images")} == dict.fromkeys(
        ("old", "bad", "kept", "new", "newer", "t.tar"), False
    ) | {"gone": True}


def test_rows_that_compress_well_are_merged_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, not only bytes on disk."""
    pieces = [table(*(answer(f"{piece}-{n}", instances=20) for n in range(300))) for piece in range(6)]
    most = 2 * pieces[0].nbytes // committer_module.UNPACKED
    monkeypatch.setattr(committer_module, "MERGE_BYTES", most)
    store = open_store(tmp_path)
    with LedgerDb() as ledger, Lease(store) as lease:
        committer = Committer(store, ledger, lease, [], every_s=0, task=VERB)
        for piece in pieces:
            addresses = piece["uri"].to_pylist()
            ledger.add_sources(Source(uri, uri, "file", "1", 1) for uri in addresses)
            committer.add(piece)
            assert sum(store.files("_segray/staging").values()) < most, "it is not size that merges"
        committer.finish()
    assert 2 <= len(store.files("images")) <= 4
    assert len(rows(tmp_path, "images")) == 6 * 300
    assert len(rows(tmp_path, "instances")) == 6 * 300 * 20


def test_merging_drops_replaced_rows_with_their_instances_and_marks_vanished_ones(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    old = store.commit(table(answer("a", instances=3), answer("b", instances=1)))
    new = store.commit(table(answer("a", version="2", instances=5)))
    gone, kept = answer("a")["image_id"], answer("b")["image_id"]
    store.merge([old, new], stale={old.number: [gone]}, vanished={kept: True})
    images = rows(tmp_path, "images")
    assert {(row["uri"], row["version"], row["vanished"]) for row in images} == {
        ("a", "2", False),
        ("b", "1", True),
    }
    assert len(rows(tmp_path, "instances")) == 6


def test_files_have_the_declared_schema_are_sorted_and_say_where_they_lie(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    merged = store.merge([store.commit(table(*(answer(uri) for uri in "qwertyuiop")))])
    name = f"part-{merged.number:06d}.parquet"
    for folder, declared in (("images", schema.IMAGES), ("instances", schema.INSTANCES)):
        file = pq.ParquetFile(tmp_path / folder / name)
        assert file.schema_arrow.remove_metadata().equals(declared)
        found = file.read().to_pylist()
        key = [(row["image_id"], row.get("instance_id", "")) for row in found]
        assert key == sorted(key)
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert b"geo" in pq.read_schema(tmp_path / "instances" / name).metadata


def test_a_part_without_instances_can_still_be_read(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.merge([store.commit(table(answer("a", instances=0)))])
    assert rows(tmp_path, "instances") == []
    assert pq.read_table(tmp_path / "instances").schema.remove_metadata().equals(schema.INSTANCES)


def test_a_full_or_forbidden_place_is_told_and_leaves_no_half_file(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out")
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(JobFailedError, match=r"cannot write .*run again"):
        store.commit(table(answer("a")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    part = store.merge([store.commit(table(answer("a")))])
    others = [
        tmp_path / name
        for name in ("images/photo.png", "images/2024000001.parquet", "instances/.DS_Store", "images/deep/x")
    ]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("not ours")
    orphan = tmp_path / f"instances/part-{part.number + 7:06d}.parquet"
    half = tmp_path / "images/.part-000099.parquet.0123abcd.tmp"
    orphan.write_text("written by a run that died before its ledger part")
    half.write_text("half")
    assert [found.name for found in open_store(tmp_path).recover()] == [part.name]
    assert all(other.exists() for other in others)
    assert not orphan.exists()
    assert not half.exists()


@pytest.mark.parametrize("name", ["../victim", "labels/../../victim", "/victim"])
def test_nothing_outside_is_written_or_deleted(name: str, tmp_path: Path) -> None:
    victim, store = tmp_path / "victim", open_store(tmp_path / "out")
    victim.write_text("of somebody")
    name = str(victim) if name == "/victim" else name
    with pytest.raises(JobFailedError, match="is not in"):
        store.put(name, b"ours")
    with pytest.raises(JobFailedError, match="is not in"):
        store.put_file(name, victim)
    with pytest.raises(JobFailedError, match="is not in"):
        store.write(name, b"ours")
    with pytest.raises(JobFailedError, match="is not in"):
        store.delete(name)
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    assert victim.read_text() == "of somebody"


def test_a_folder_with_results_of_another_tool_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/photo.png").write_text("a photo")
    with pytest.raises(SettingsError, match="segray did not write"):
        open_store(tmp_path).check_usable()


def test_a_start_reads_each_part_for_what_it_replaces_and_for_its_rows(tmp_path: Path) -> None:
    before = open_store(tmp_path)
    for name in "abc":
        before.merge([before.commit(table(answer(name)))])
    asked = Counter[str]()

    class Asked(Store):
        def read(self, name: str) -> bytes | None:
            asked[name] += 1
            return super().read(name)

    store = Asked(str(tmp_path), StorageSettings())
    with LedgerDb() as ledger:
        for part in store.recover():
            ledger.add_ledger(store, part)
        assert ledger.counts()["items"] == 3
    assert len(asked) == 3
    assert max(asked.values()) == 2


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    part = store.commit(table(answer("a")))
    path = tmp_path / part.name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(JobFailedError, match=f"{part.name} is damaged"):
        list(open_store(tmp_path).ledger(part, ["uri"]))


def test_a_commit_never_overwrites_that_of_another_run(tmp_path: Path) -> None:
    ours, theirs = open_store(tmp_path), open_store(tmp_path)
    ours.commit(table(answer("a")))
    with pytest.raises(JobFailedError, match="another run writes to it"):
        theirs.commit(table(answer("b")))
