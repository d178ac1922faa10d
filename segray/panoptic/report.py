"""Counts of a panoptic output, the contents of run.json, and the lines printed at the end."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from segray.panoptic.settings import PanopticSettings
from segray.settings import printable
from segray.storage import canonical_uri
from segray.versions import versions

_SUMS = ("segments", "instances", "dropped", "small_stuff", "void_pixels")
_EXAMPLES = 3


@dataclass(slots=True)
class Counts:
    """Sums over the ledger; add its parts."""

    items: int = 0
    pixels: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, ledger: pa.Table) -> None:
        """Add rows of the ledger (schema LEDGER)."""
        self.items += ledger.num_rows
        good = ledger.filter(pc.equal(ledger["status"], "annotated"))
        for name in _SUMS:
            self.sums[name] += pc.sum(good[name]).as_py() or 0
        sizes = pc.multiply(good["height"].cast(pa.int64()), good["width"].cast(pa.int64()))
        self.pixels += pc.sum(sizes).as_py() or 0
        bad = ledger.filter(pc.equal(ledger["status"], "rejected"))
        self.rejects.update(bad["error_type"].to_pylist())
        for row in bad.slice(0, _EXAMPLES - len(self.examples)).to_pylist():
            member = "" if row["member"] is None else f"/{row['member']}"
            self.examples.append(f"{row['uri']}{member}: {row['error']}")


def run_record(
    settings: PanopticSettings, counts: Counts, items: int, seconds: float, more: dict[str, Any]
) -> dict[str, Any]:
    """Return the contents of run.json. items, seconds: of the run that finished; counts: of the output."""
    rejected = counts.rejects.total()
    void = counts.sums["void_pixels"] / counts.pixels if counts.pixels else None
    return {
        "verb": "panoptic",
        "settings": yaml.safe_load(printable(settings)),
        "versions": versions(),
        "counts": {
            "items": counts.items,
            "annotated": counts.items - rejected,
            "rejected": rejected,
            **{name: counts.sums[name] for name in _SUMS},
            "void_share": None if void is None else round(void, 6),
            "vanished": 0,
            "rejects_by_type": dict(counts.rejects.most_common()),
            "rejects_for_example": counts.examples,
        },
        "rates": {
            "seconds": round(seconds, 3),
            "items": items,
            "images_per_s": round(items / seconds, 3) if seconds > 0 else None,
        },
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **more,
    }


def summary_lines(settings: PanopticSettings, record: dict[str, Any], did: str) -> Sequence[str]:
    """Return the lines to print."""
    counts = record["counts"]
    stuff, void = counts["segments"] - counts["instances"], counts["void_share"]
    lines = [
        did,
        f"  {counts['items']:,} images: {counts['annotated']:,} fused, {counts['rejected']:,} rejected",
        f"  {counts['instances']:,} things, {stuff:,} stuff segments"
        + ("" if void is None else f"; {void:.1%} of the pixels are void"),
    ]
    if counts["dropped"]:
        lines.append(f"  {counts['dropped']:,} things dropped: others hide more than --min-visible allows")
    if counts["small_stuff"]:
        lines.append(f"  {counts['small_stuff']:,} stuff segments are below --min-stuff-area: void")
    lines += [f"  rejected as {kind}: {number:,}" for kind, number in counts["rejects_by_type"].items()]
    lines += [f"    for example {example}" for example in counts["rejects_for_example"]]
    return [*lines, f"output: {canonical_uri(settings.output)}"]
