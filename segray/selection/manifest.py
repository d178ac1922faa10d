"""The manifest of a choice: an address, a rank and a reason for each image."""

import io
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.selection.choose import Chosen, Floats
from segray.selection.reading import Pool, batches, ledger_of
from segray.storage import StorageSettings

MANIFEST = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("member", pa.string()),  # name inside the archive; null outside archives
        pa.field("image_id", pa.string()),
        pa.field("rank", pa.int32()),  # from 1, in the order in which they were chosen
        pa.field("reason", pa.string()),
        pa.field("group", pa.string()),
        pa.field("score", pa.float32()),  # mean of the criteria's shares of images below, 0..1
        *(pa.field(name, pa.float32()) for name in ("unsure", "flips", "windows", "against")),
        pa.field("distance", pa.float32()),  # from the nearest image that was chosen before, or is labelled
    ]
)
_TOP = 0.75
"""Share of images below from which a criterion counts as a reason."""
_FAR = 0.75


def manifest_of(
    pool: Pool, run: str, chosen: Chosen, score: Floats, shares: dict[str, Floats], storage: StorageSettings
) -> pa.Table:
    """Return the table of a choice, schema MANIFEST; score, and each of shares: (n,) of the pool."""
    address = _addresses(pool, run, chosen.index, storage)
    far = _far(chosen.distance)
    rows = []
    for rank, (image, distance) in enumerate(zip(chosen.index.tolist(), chosen.distance, strict=True)):
        uri, member = address[image]
        rows.append(
            {
                "uri": uri,
                "member": member,
                "image_id": pool.ids[image].decode(),
                "rank": rank + 1,
                "reason": reason(pool, image, shares, float(distance) if far[rank] else None),
                "group": pool.groups[pool.group[image]],
                "score": score[image],
                **{name: _or_none(pool.measures[name][image]) for name in shares},
                "distance": _or_none(distance),
            }
        )
    return pa.Table.from_pylist(rows, MANIFEST)


def _addresses(
    pool: Pool, run: str, index: NDArray[np.int64], storage: StorageSettings
) -> dict[int, tuple[str, str | None]]:
    wanted = np.zeros(len(pool), bool)
    wanted[index] = True
    found = {}
    for file in ledger_of(run, storage):
        for batch in batches(file, ("image_id", "uri"), ("member",), storage):
            image = pool.index(batch)
            rows = np.flatnonzero((image >= 0) & wanted[image])
            for row, each in zip(rows.tolist(), batch.take(pa.array(rows)).to_pylist(), strict=True):
                found[int(image[row])] = (each["uri"], each.get("member"))
    return found


def _far(distance: Floats) -> NDArray[np.bool_]:
    known = distance[~np.isnan(distance)]
    if not len(known):
        return np.zeros(len(distance), bool)
    far: NDArray[np.bool_] = distance >= np.quantile(known, _FAR)
    return far


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def reason(pool: Pool, image: int, shares: dict[str, Floats], distance: float | None) -> str:
    """Return why an image was chosen, with figures; distance: None unless it is among the farthest.

    Criteria in which it exceeds most images, the strongest first; without any the strongest alone.
    """
    known = sorted((-share[image], name) for name, share in shares.items() if not np.isnan(share[image]))
    top = [name for share, name in known if -share >= _TOP] or [name for _, name in known[:1]]
    words = [_words(name, pool, image, float(shares[name][image])) for name in top]
    if distance is not None:
        words.append(f"unlike the others: distance {distance:.2f} from the nearest one chosen or labelled")
    return "; ".join(words) or "spread over the run"


def _words(name: str, pool: Pool, image: int, share: float) -> str:
    value = float(pool.measures[name][image])
    more = f"more than {math.floor(100 * share)} % of the images" if share < 1 else "the most of all images"
    if name == "unsure":
        return f"unsure: {_unsure(pool, image, value)}, {more}"
    text = {
        "flips": f"its mirror image is labelled otherwise: {100 * value:.0f} %",
        "windows": f"overlapping windows disagree: {100 * value:.0f} % of instances",
        "against": f"the two runs disagree: {100 * value:.0f} %",
    }[name]
    return f"{text}, {more}"


def _unsure(pool: Pool, image: int, value: float) -> str:
    instances = pool.measures.get("instances")
    if instances is None:
        return f"entropy {value:.2f} of 1"
    if pool.unsure_is_share:
        return f"{100 * value:.0f} % of its instances expected to be wrong"
    return f"{value:.1f} instances expected to be wrong, {instances[image]:.0f} found"


def data_of(table: pa.Table, name: str) -> bytes:
    """Return a manifest as the bytes of a file of this name: CSV or Parquet."""
    sink = io.BytesIO()
    if name.lower().endswith(".csv"):
        pc_csv.write_csv(table, sink)
    else:
        pq.write_table(table, sink)
    return sink.getvalue()


def by_group(groups: Sequence[str | None], table: pa.Table) -> list[str]:
    """Return lines: how many images of each group were chosen, the ten largest groups."""
    counts = [(table["group"].to_pylist().count(group), group) for group in groups]
    counts.sort(key=lambda each: (-each[0], each[1] or ""))
    lines = [f"{'(none)' if group is None else group}: {count:,}" for count, group in counts[:10]]
    return [*lines, f"and {len(counts) - 10:,} more groups"] if len(counts) > 10 else lines
