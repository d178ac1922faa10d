"""The listing against the ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from segray.bulk import committer as committer_module
from segray.bulk.committer import Committer
from segray.bulk.ledger_db import LedgerDb
from segray.errors import JobFailedError
from segray.output.lease import Lease
from segray.output.store import Store
from segray.sources.item import Source, SourceKind
from segray.storage import StorageSettings
from tests.bulk.tables import VERB, answer, end, table


def source(uri: str, version: str = "1", kind: SourceKind = "file") -> Source:
    return Source(uri, uri, kind, version, 10)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path), StorageSettings())


@pytest.fixture
def ledger() -> Iterator[LedgerDb]:
    with LedgerDb() as ledger:
        yield ledger


def resume(ledger: LedgerDb, store: Store) -> Committer:
    parts = store.recover()
    for part in parts:
        ledger.add_ledger(store, part)
    return Committer(store, ledger, Lease(store), parts, every_s=0, task=VERB)


def test_an_address_listed_twice_is_one_item(ledger: LedgerDb) -> None:
    ledger.add_sources([source("a"), source("b"), source("a")])
    assert [file.uri for file in ledger.todo_files()] == ["a", "b"]


def test_addresses_that_differ_in_their_query_string_are_counted(ledger: LedgerDb) -> None:
    twins = [Source("http://h/a", f"http://h/a?id={number}", "file", "1", 1) for number in (1, 2, 3)]
    ledger.add_sources([*twins, twins[0], source("s3://b/what?")])
    assert ledger.sources() == 2
    assert ledger.query_twins == 2


def test_an_interrupt_in_the_middle_of_a_commit_leaves_the_plan_usable(ledger: LedgerDb) -> None:
    def interrupted() -> Iterator[Source]:
        yield source("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger._many("INSERT INTO source (uri) VALUES (?)", ((each.uri,) for each in interrupted()))
    ledger.add_sources([source("b")])
    assert ledger.sources() == 2


def test_what_is_committed_is_not_done_again(ledger: LedgerDb, store: Store) -> None:
    store.commit(table(answer("a"), answer("b", error_type="corrupt")))
    ledger.add_sources([source("a"), source("b"), source("c")])
    resume(ledger, store)
    assert [file.uri for file in ledger.todo_files()] == ["c"]
    ledger.forget_rejected()
    assert [file.uri for file in ledger.todo_files()] == ["b", "c"]


def test_a_changed_file_is_done_again_and_replaces_its_rows(ledger: LedgerDb, store: Store) -> None:
    store.merge([store.commit(table(answer("a", instances=3), answer("b")))])
    ledger.add_sources([source("a", "2"), source("b")])
    committer = resume(ledger, store)
    assert [file.uri for file in ledger.todo_files()] == ["a"]
    assert not ledger.is_finished()
    committer.add(table(answer("a", "2", instances=1)))
    committer.finish()
    with LedgerDb() as again:
        again.add_sources([source("a", "2"), source("b")])
        resume(again, store)
        assert again.counts()["items"] == 2
        assert again.counts()["instances"] == 3
        assert again.is_finished()


def test_a_rejected_item_tried_again_leaves_one_row(ledger: LedgerDb, store: Store) -> None:
    store.merge([store.commit(table(answer("a", error_type="storage"), answer("b")))])
    ledger.add_sources([source("a"), source("b")])
    committer = resume(ledger, store)
    ledger.forget_rejected()
    committer.add(table(answer("a", instances=4)))
    committer.finish()
    with LedgerDb() as again:
        again.add_sources([source("a"), source("b")])
        resume(again, store)
        assert again.counts() | {"rejects_by_type": {}} == again.counts()
        assert (again.counts()["items"], again.counts()["instances"]) == (2, 6)


def test_rejects_are_counted_by_type_and_suffix(ledger: LedgerDb, store: Store) -> None:
    """Those in archives by their members' names."""
    rows = [answer(f"{name}.HEIC", error_type="unsupported") for name in "abc"]
    rows += [
        answer("d.jxl", error_type="unsupported"),
        answer("e.jpg", error_type="corrupt"),
        answer("f.png"),
    ]
    rows += [answer("g.tar", error_type="corrupt", member=0), answer("http://x/?id=7", error_type="corrupt")]
    store.merge([store.commit(table(*rows))])
    ledger.add_sources([source(row["uri"]) for row in rows if row["member"] is None])
    ledger.add_sources([source("g.tar", kind="tar")])
    resume(ledger, store)
    counts = ledger.counts()
    assert list(counts["rejects_by_type"].items()) == [("unsupported", 4), ("corrupt", 3)]
    assert counts["rejects_by_kind"] == {
        "unsupported": {".heic": 3, ".jxl": 1},
        "corrupt": {".jpg": 1, ".png": 1, "no suffix": 1},
    }


def test_vanished_items_stay_and_are_marked_until_they_come_back(ledger: LedgerDb, store: Store) -> None:
    store.merge([store.commit(table(answer("a"), answer("b")))])
    ledger.add_sources([source("a")])
    committer = resume(ledger, store)
    committer.finish()
    assert (ledger.counts()["items"], ledger.counts()["vanished"]) == (2, 1)
    with LedgerDb() as again:
        again.add_sources([source("a"), source("b")])
        committer = resume(again, store)
        assert again.counts()["vanished"] == 1
        assert not again.is_finished()
        committer.finish()
        assert again.counts()["vanished"] == 0
        assert again.is_finished()


def unreachable(uri: str, kind: SourceKind = "file") -> Source:
    return Source(uri, uri, kind, "", -1, "missing", "the file is not there")


def test_what_cannot_be_reached_now_keeps_its_rows(ledger: LedgerDb, store: Store) -> None:
    """As a manifest names it, or a folder a link to nothing."""
    store.merge([store.commit(table(answer("a"), answer("t.tar", member=0), end("t.tar", items=1)))])
    ledger.add_sources([unreachable("a"), unreachable("t.tar", "tar"), unreachable("never")])
    committer = resume(ledger, store)
    assert [file.uri for file in ledger.todo_files()] == ["never"]
    assert list(ledger.todo_archives()) == []
    committer.add(table(answer("never", "", error_type="missing")))
    committer.finish()
    counts = ledger.counts()
    assert [counts[name] for name in ("items", "instances", "vanished", "rejected")] == [3, 4, 2, 1]
    assert ledger.unreached() == (2, "a: the file is not there")
    assert ledger.rejected_share() == 1
    assert ledger.is_finished()
    with LedgerDb() as again:
        again.add_sources([source("a"), source("t.tar", kind="tar"), source("never")])
        committer = resume(again, store)
        assert [file.uri for file in again.todo_files()] == ["never"]
        committer.add(table(answer("never")))
        committer.finish()
        assert (again.counts()["items"], again.counts()["vanished"]) == (3, 0)
        assert again.rejected_share() == 0


def test_a_new_version_that_cannot_be_read_replaces_nothing(ledger: LedgerDb, store: Store) -> None:
    """An archive that was moved to cold storage; and a new archive that a member is no longer in."""
    members = [answer("t.tar", member=index) for index in (0, 1)]
    store.merge([store.commit(table(answer("a"), *members, end("t.tar", items=2)))])
    now = [source("a", "2"), source("t.tar", "2", "tar")]
    ledger.add_sources(now)
    committer = resume(ledger, store)
    committer.add(table(answer("a", "2", error_type="storage"), answer("t.tar", "2", instances=5, member=1)))
    committer.add(table(end("t.tar", items=1, version="2")))
    committer.finish()
    counts = ledger.counts()
    assert [counts[name] for name in ("items", "instances", "vanished", "rejected")] == [4, 2 + 2 + 5, 2, 1]
    assert ledger.is_finished()
    with LedgerDb() as again:
        again.add_sources(now)
        committer = resume(again, store)
        assert again.is_finished()
        again.forget_rejected()
        committer.add(table(answer("a", "2", instances=1)))
        committer.finish()
        assert [again.counts()[name] for name in ("items", "instances")] == [3, 1 + 2 + 5]


def test_an_archive_is_done_when_its_end_and_all_its_members_are_there(
    ledger: LedgerDb, store: Store
) -> None:
    members = [answer("t.tar", member=index) for index in (0, 1, 9, 17)]
    store.commit(table(*members[:3]))
    ledger.add_sources([source("t.tar", kind="tar"), source("a")])
    committer = resume(ledger, store)
    (archive,) = ledger.todo_archives()
    assert [index for index in range(30) if index in archive] == [0, 1, 9]
    assert ledger.known_total() is None
    committer.add(table(end("t.tar", items=4, ignored=14)))
    committer.commit()
    assert len(list(ledger.todo_archives())) == 1
    assert ledger.known_total() == 5
    committer.add(table(members[3]))
    committer.commit()
    assert list(ledger.todo_archives()) == []


def test_a_lost_item_fails_the_job_by_name(ledger: LedgerDb, store: Store) -> None:
    ledger.add_sources([source("a"), source("b")])
    committer = resume(ledger, store)
    committer.add(table(answer("a")))
    with pytest.raises(JobFailedError, match="b: no result"):
        committer.finish()


def test_a_broken_archive_that_can_be_read_later_loses_its_own_row(ledger: LedgerDb, store: Store) -> None:
    broken = answer("t.tar", error_type="storage")
    first = store.commit(table(answer("t.tar", member=0), broken, end("t.tar", items=2, broken=True)))
    store.merge([first])
    ledger.add_sources([source("t.tar", kind="tar")])
    committer = resume(ledger, store)
    assert list(ledger.todo_archives()) == []
    ledger.forget_rejected()
    (archive,) = ledger.todo_archives()
    assert [index for index in range(9) if index in archive] == [0]
    committer.add(table(answer("t.tar", member=5), end("t.tar", items=2)))
    committer.finish()
    with LedgerDb() as again:
        again.add_sources([source("t.tar", kind="tar")])
        resume(again, store)
        assert (again.counts()["items"], again.counts()["rejected"]) == (2, 0)
        assert again.is_finished()


def test_the_row_of_a_broken_archive_does_not_hide_a_member(ledger: LedgerDb, store: Store) -> None:
    ledger.add_sources([source("t.tar", kind="tar")])
    committer = resume(ledger, store)
    committer.add(table(answer("t.tar", error_type="storage"), end("t.tar", items=2, broken=True)))
    with pytest.raises(JobFailedError, match=r"t\.tar: no result"):
        committer.finish()


def test_a_block_that_comes_twice_counts_once(ledger: LedgerDb, store: Store) -> None:
    ledger.add_sources([source("a"), source("b")])
    committer = resume(ledger, store)
    committer.every_s = 1000
    for rows in (table(answer("a"), answer("b")), table(answer("a"))):
        committer.add(rows)
    committer.commit()
    committer.add(table(answer("b")))
    committer.finish()
    with LedgerDb() as again:
        again.add_sources([source("a"), source("b")])
        resume(again, store)
        assert (again.counts()["items"], again.counts()["instances"]) == (2, 4)


def test_vanished_rejects_do_not_count_against_the_limit(ledger: LedgerDb, store: Store) -> None:
    store.merge([store.commit(table(answer("a"), answer("bad", error_type="corrupt")))])
    ledger.add_sources([source("a")])
    resume(ledger, store).finish()
    assert ledger.counts()["rejected"] == 1
    assert ledger.rejected_share() == 0


def test_many_short_runs_do_not_leave_many_files(store: Store) -> None:
    for number in range(10):
        with LedgerDb() as ledger:
            ledger.add_sources(source(f"f{index}") for index in range(number + 1))
            committer = resume(ledger, store)
            committer.add(table(answer(f"f{number}")))
            committer.finish()
    assert len(store.recover()) < 5


def test_parts_that_are_small_in_the_ledger_alone_are_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture with hundreds of instances has one row in the ledger: to merge all parts would need them all
    in memory."""
    for number in range(10):
        part = store.merge([store.commit(table(answer(f"f{number}", instances=400)))])
    monkeypatch.setattr(committer_module, "SMALL_BYTES", part.size + 1000)
    with LedgerDb() as ledger:
        ledger.add_sources(source(f"f{number}") for number in range(10))
        resume(ledger, store).finish()
    assert len(store.recover()) == 10
