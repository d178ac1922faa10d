"""Images of the file, one after the other: drawn, compared with those of the run, written and counted."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pycocotools import mask as coco_mask

from segray.errors import ItemError
from segray.export.table import Image, Instance
from segray.importer.categories import Categories
from segray.importer.compare import Found, compared
from segray.importer.drawn import Looked
from segray.importer.prepare import Import
from segray.importer.run_images import RunImages
from segray.importer.write_labels import KEPT, LabelWriter


class Corrections:
    """Add images of the file, then `finish`."""

    def __init__(self, job: Import, categories: Categories, writer: LabelWriter | None) -> None:
        self.categories = categories
        self.tally: Counter[str] = Counter(images=0, instances=0)
        self._job, self._writer = job, writer
        self._seen = set[str]()  # 140 bytes an image

    def add(self, looked: Looked, image: Image | ItemError) -> bool:
        """Take an image; return whether it is one that was not taken before."""
        job = self._job
        if isinstance(image, ItemError):
            job.rejects.image(looked.name, image.reason)
            return False
        if image.image_id in self._seen:
            job.rejects.image(looked.name, f"the file has image {image.image_id} twice; the first counts")
            return False
        self._seen.add(image.image_id)
        rows = job.images.instances(image)
        found, counts = _corrected(looked, image, rows, job, self.categories)
        self.tally += counts + Counter(images=1, instances=len(found))
        if self._writer is not None:
            self._writer.add(image, _ledger(looked, image, job), found, rows)
        return True

    def finish(self) -> Counter[str]:
        """Write what is left; return the counts."""
        if self._writer is not None:
            self._writer.finish()
        new = self.categories.new() if isinstance(self._job.images, RunImages) else {}
        return self.tally + Counter({f"class {name} ({number})": 1 for number, name in new.items()})


def _corrected(
    looked: Looked, image: Image, rows: Sequence[Instance], job: Import, categories: Categories
) -> tuple[list[Found], Counter[str]]:
    """Return the instances of an image, and counts of what happened to those of the run."""
    drawn = []
    for each in looked.drawn:
        try:
            counts = each.draw(image.height, image.width)
            number, name = categories.of(each.category, each.number)
            if not coco_mask.area({"size": [image.height, image.width], "counts": counts}):
                raise ItemError("unsupported", "it covers no pixel of its image")
        except ItemError as error:
            job.rejects.annotation(looked.name, each.where, error.reason)
            continue
        drawn.append(Found(counts, number, name, each.instance_id, each.crowd))
    shown_as = None if looked.shown is None or not rows else looked.shown(image, rows)
    return compared(drawn, rows, (image.height, image.width), shown_as)


def _ledger(looked: Looked, image: Image, job: Import) -> dict[str, Any]:
    own = {name: getattr(looked, name) for name in KEPT if getattr(looked, name) is not None}
    return {**job.images.ledger(image), **own}
