"""The tables of an output: each commit is two files, written once.

    segments/part-000007-g2.parquet   one row a segment
    images/part-000007-g2.parquet     the ledger, written after it: the commit record

A killed run leaves at most segments without their ledger, which the next start deletes. Rows that no longer
count are left out of a new part, which names the one that it replaces.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.errors import JobFailedError
from segray.output.folder import IMAGES, Output, mark
from segray.output.panoptic import FOLDER, SEGMENT, SEGMENTS

LEDGER = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("member", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("status", pa.string()),  # annotated | rejected
        pa.field("segments", pa.int32()),
        pa.field("instances", pa.int32()),  # segments that are things
        pa.field("dropped", pa.int32()),  # things of which too little was left
        pa.field("small_stuff", pa.int32()),  # stuff classes below --min-stuff-area
        pa.field("void_pixels", pa.int64()),
        pa.field("file", pa.string()),  # of the segment ids, in the output; null for rejected rows
        pa.field("error_type", pa.string()),
        pa.field("error", pa.string()),
        pa.field("crs", pa.string()),
        pa.field("split", pa.string()),  # of the runs, where they have them
        pa.field("group", pa.string()),
        pa.field("inputs", pa.string()),  # state of the image in both runs
    ]
)
"""One row an image, fused and rejected alike."""

ROW_GROUP = 65_536
_PART = re.compile(rf"(?:{IMAGES}|{SEGMENTS})/(part-(\d{{6,}})(?:-g\d+)?\.parquet)")
_KEY = b"segray"


class Tables(Output):
    """Commit, read and recover the tables of one output."""

    _next = 1

    def recover(self) -> list[str]:
        """Delete what a killed run left half done; return the names of the parts, oldest first."""
        self._delete_half()
        names = {folder: self._parts(folder) for folder in (IMAGES, SEGMENTS)}
        replaced = {self._replaces(name) for name in names[IMAGES]}
        for name in sorted({*names[IMAGES]} & replaced):  # the ledger first: then the segments count no more
            self.delete(f"{IMAGES}/{name}")
        valid = [name for name in sorted(names[IMAGES]) if name not in replaced]
        for name in names[SEGMENTS]:
            if name not in valid:
                self.delete(f"{SEGMENTS}/{name}")
        if lost := [name for name in valid if name not in names[SEGMENTS]]:
            self.fence()
            raise JobFailedError(
                f"{self.root}/{SEGMENTS}/{lost[0]} is missing; restore it, or delete {IMAGES}/{lost[0]} and "
                "run again to repeat its images"
            )
        self._next = 1 + max((int(found[2]) for name in (*names[IMAGES], *names[SEGMENTS])
                              if (found := _PART.fullmatch(f"{IMAGES}/{name}"))), default=0)  # fmt: skip
        return valid

    def commit(self, images: pa.Table, segments: pa.Table, replaces: str | None = None) -> str:
        """Write rows (schemas LEDGER, SEGMENT) as one part; return its name."""
        name = f"part-{self._next:06d}{mark(self.generation)}.parquet"
        self._next += 1
        self.write(f"{SEGMENTS}/{name}", _parquet(segments.cast(SEGMENT), None))
        self.write(f"{IMAGES}/{name}", _parquet(images.cast(LEDGER), replaces))
        return name

    def leave_out(self, part: str, image_ids: Sequence[str]) -> None:
        """Replace a part by one without these images."""
        gone = pa.array(image_ids, pa.string())
        kept = [
            table.filter(pc.invert(pc.is_in(table["image_id"], gone)))
            for table in (self.table(IMAGES, part), self.table(SEGMENTS, part))
        ]
        if kept[0].num_rows:
            self.commit(kept[0], kept[1], replaces=part)
        self.delete(f"{IMAGES}/{part}")
        self.delete(f"{SEGMENTS}/{part}")

    def table(self, folder: str, part: str) -> pa.Table:
        """Return a table of one part. Raises JobFailedError where it is gone or damaged."""
        return self._opened(folder, part, lambda file: file.read())

    def rows(self, folder: str, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a table, part by part; a part is in memory."""
        for part in parts:
            yield from self.table(folder, part).to_pylist()

    def _delete_half(self) -> None:
        """Delete half written files of segment ids, as a kill leaves them on a disk under hidden names."""
        if "file" in self.filesystem.protocol:
            for name in self.files(FOLDER):
                if name.startswith(f"{FOLDER}/.") and name.endswith(".tmp"):
                    self.delete(name)

    def _replaces(self, part: str) -> str | None:
        metadata = self._opened(IMAGES, part, lambda file: file.schema_arrow.metadata) or {}
        found: str | None = json.loads(metadata.get(_KEY, b"{}")).get("replaced")
        return found

    def _opened(self, folder: str, part: str, read: Callable[[pq.ParquetFile], Any]) -> Any:
        data = self.read(f"{folder}/{part}")
        if data is None:
            self.fence()
            raise JobFailedError(f"{self.root}/{folder}/{part} is gone; was it deleted while the job ran?")
        try:
            return read(pq.ParquetFile(pa.BufferReader(data)))
        except pa.ArrowException as error:
            raise JobFailedError(
                f"{self.root}/{folder}/{part} is damaged ({error}); delete it to repeat its images"
            ) from error

    def _parts(self, folder: str) -> list[str]:
        found = (_PART.fullmatch(name) for name, size in self.files(folder).items() if size)
        return [each[1] for each in found if each]


def _parquet(table: pa.Table, replaces: str | None) -> bytes:
    metadata = None
    if replaces is not None:  # `replaces` and `ends` as the ledger of bulk verbs has them, for `status`
        metadata = {_KEY: json.dumps({"replaced": replaces, "replaces": [], "ends": []}).encode()}
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(metadata)
    pq.write_table(plain, sink, compression="zstd", row_group_size=ROW_GROUP)
    data: bytes = sink.getvalue().to_pybytes()
    return data
