"""Outputs on file systems without hard links (exFAT, gcsfuse, DBFS): one winner, nothing half written.

A real exFAT is mounted where the machine allows it (root, a loop device, exfat-fuse, exfatprogs); the other
tests make `link` answer as such file systems do.
"""

import errno
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segray.atomic import create_atomically
from segray.errors import SettingsError
from segray.output.lease import NAME, Holder, Lease
from segray.output.store import STAGING, Store
from segray.schema import ANNOTATED
from segray.storage import LeaseSettings, StorageSettings, open_filesystem

QUICK = StorageSettings(lease=LeaseSettings(renew_s=0.2, expires_s=1.0))
IMAGE_MIB = 16


def _exfat(folder: Path) -> Path:
    """Mount a small exFAT of its own. Raises OSError or CalledProcessError where it cannot be."""
    image, place = folder / "image", folder / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    subprocess.run(["mkfs.exfat", image], check=True, capture_output=True)
    device = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True)
    (folder / "device").write_text(device.stdout.strip())
    subprocess.run(["mount.exfat-fuse", device.stdout.strip(), place], check=True, capture_output=True)
    return place


@pytest.fixture(params=["exfat", errno.EPERM, errno.ENOSYS, errno.ENOTSUP])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which no hard link can be made."""
    if request.param != "exfat":

        def link(*_: object, **__: object) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(os, "link", link)
        yield tmp_path
        return
    try:
        mounted = _exfat(tmp_path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no exFAT can be mounted here: {error}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True)
        subprocess.run(["losetup", "-d", (tmp_path / "device").read_text()], check=True)


def test_links_are_refused_here(place: Path) -> None:
    (place / "a").write_bytes(b"1")
    with pytest.raises(OSError, match=r"."):
        (place / "b").hardlink_to(place / "a")


def test_create_has_one_winner(place: Path) -> None:
    filesystem, path = open_filesystem(str(place / "new/lease"), QUICK)

    def create(caller: int) -> bytes | None:
        try:
            create_atomically(filesystem, path, b"%d" % caller * 1000)
        except FileExistsError:
            return None
        return b"%d" % caller * 1000

    with ThreadPoolExecutor(8) as pool:
        won = [data for data in pool.map(create, range(8)) if data is not None]
    assert won == [Path(path).read_bytes()]
    assert [file.name for file in (place / "new").iterdir()] == ["lease"]


def test_a_full_disk_leaves_no_claim(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem, path = open_filesystem(str(place / "lease"), QUICK)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            create_atomically(filesystem, path, b"1")
    create_atomically(filesystem, path, b"2")
    assert Path(path).read_bytes() == b"2"


def test_a_lease_and_commits(place: Path) -> None:
    store = Store(str(place / "out"), QUICK)
    with Lease(store):
        assert store.recover() == []
        parts = [store.commit(ANNOTATED.empty_table()) for _ in range(2)]
        with pytest.raises(SettingsError, match="is being written by another run"):
            Lease(store).refuse_second_run()
        assert store.recover() == parts
    assert Holder.of((place / "out" / NAME).read_bytes()).released


def test_a_kill_between_claim_and_contents_costs_a_commit_and_nothing_else(place: Path) -> None:
    store = Store(str(place / "out"), QUICK)
    part = store.commit(ANNOTATED.empty_table())
    (place / "out" / STAGING / "000002.parquet").touch()  # claimed, then killed
    (place / "out" / STAGING / ".000002.parquet.0123abcd.tmp").write_bytes(b"PAR1")
    (place / "out" / NAME).touch()  # likewise
    again = Store(str(place / "out"), QUICK)
    with Lease(again):
        assert again.recover() == [part]
        assert again.commit(ANNOTATED.empty_table()).number > part.number
    names = sorted(path.name for path in (place / "out" / STAGING).iterdir())
    assert len(names) == 2
    assert not [name for name in names if name.endswith(".tmp")]
