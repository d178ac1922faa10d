"""One run over a folder of damaged pictures and archives: each is annotated or rejected, and none is lost."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from segray.sources.archives import read_archive
from segray.sources.listing import Listing
from segray.storage import StorageSettings
from tests.bulk.runs import MODELS, annotate, tables
from tests.sources.test_fuzz import check_words, damaged_archives, mutations, seeds_of_images
from tests.sources.test_hostile_archives import CHAINS, END, GOOD, WRONG, bomb, zeros

SUFFIXES = ("jpg", "png", "tif", "bmp", "gif", "webp", "jp2", "avif")


def fill(folder: Path, number: int, seed: int) -> None:
    """Damaged pictures under any image suffix, damaged archives, bombs, foreign files in disguise."""
    folder.mkdir()
    for index, (_, data, draw) in enumerate(mutations(seeds_of_images(), number, seed)):
        (folder / f"{index:05d}.{draw.choice(SUFFIXES)}").write_bytes(data)
    for index, (_, suffix, data) in enumerate(damaged_archives(number // 10, seed)):
        (folder / f"damaged-{index}.{suffix}").write_bytes(data)
    for index, (kind, headers) in enumerate(islice(CHAINS.items(), 3)):
        (folder / f"chain-{index}.tar").write_bytes(GOOD + headers[: 1 << 20] + GOOD + END)
        (folder / f"{kind}.notes").write_text("ignored")
    for name, (make, _) in WRONG.items():
        (folder / f"wrong-{name}").write_bytes(make())
    (folder / "bomb.zip").write_bytes(bomb(0xFFFF_FFFE, zeros(10)))


def counted(folder: Path) -> Counter[str]:
    """What a plain loop over the sources, without Ray, finds: items by the archive or file they are in."""
    storage, found = StorageSettings(), Counter[str]()
    for source in Listing([str(folder)], storage):
        if source.kind == "file":
            found[source.uri] += 1
        else:
            found[source.uri] += sum(table.num_rows for table in read_archive(source, (), storage)) - 1
    return found


@pytest.mark.usefixtures("ray_session")
def test_every_item_is_answered(
    tmp_path: Path, fuzz_files: int, fuzz_seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    fill(folder, min(200, fuzz_files), fuzz_seed)
    run = (folder, "--output", output, "--weights", MODELS + "seeded", "--max-pixels", 10**7)
    assert annotate(*run, "--decode-timeout-s", 10) == 3
    ledger, instances = tables(output)
    assert Counter(row["uri"] for row in ledger) == counted(folder)
    assert len({row["image_id"] for row in ledger}) == len(ledger)
    for row in ledger:
        if row["status"] == "rejected":
            check_words(row["error_type"], row["error"])
            assert row["error_type"] not in ("storage", "crashed", "timeout", "missing"), row
        else:
            assert row["error_type"] is None
            assert row["height"] * row["width"] <= 10**7
    counts = json.loads((output / "run.json").read_text())["counts"]
    rejected = sum(row["status"] == "rejected" for row in ledger)
    assert (counts["rejected"], counts["annotated"]) == (rejected, len(ledger) - rejected)
    assert counts["ignored"] >= 3
    assert sum(row["instances"] for row in ledger) == len(instances) > 100
    assert "Traceback" not in capsys.readouterr().err
