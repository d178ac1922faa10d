"""The model step of `predict --volumes`: DECODED -> ANNOTATED; the worker itself writes the label volumes."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from segray.arrow_rows import byte_views
from segray.bulk.results import Outcome, results_table
from segray.errors import ItemError
from segray.models.device import DTYPES, Precision, is_out_of_memory
from segray.models.modelfile import VolumeCard
from segray.models.semantic import classes_of
from segray.models.volume_windows import by_windows
from segray.models.weights import LoadedModel
from segray.output.folder import Output
from segray.sources.volume import SUFFIX, Volume, label_file, unpacked


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row whose label volume is written."""

    instances: int = 0
    empty_masks: int = 0


class VolumePredictor:
    """One model of volumes on one device; volumes are predicted one by one."""

    def __init__(
        self, model: LoadedModel, device: str, precision: Precision, threads: int | None, store: Output
    ) -> None:
        """Load the model; device and precision: resolved. threads: of torch on a CPU; None: unchanged."""
        if threads is not None:
            torch.set_num_threads(threads)
        assert isinstance(model.card, VolumeCard)
        self.card, self._store = model.card, store
        self._device, self._precision = torch.device(device), precision
        self._module = model.module.to(self._device).eval()

    def predict(self, table: pa.Table) -> pa.Table:
        """Turn DECODED into ANNOTATED, in the order of the rows, once all label volumes are written.

        Raises JobFailedError where the output cannot be written, and whatever the model raises.
        """
        outcomes: list[Outcome] = [None] * table.num_rows
        for row, data in enumerate(byte_views(table["pixels"])):
            if data is not None:
                outcomes[row] = self._written(table["image_id"][row].as_py(), unpacked(data))
        return results_table(table, outcomes)

    def _written(self, image_id: str, volume: Volume) -> Outcome:
        try:
            labels = self.labels(volume.voxels)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return ItemError("memory", f"no room for the model's work: {str(error).splitlines()[0]}")
        name = f"labels/{image_id}{SUFFIX[volume.place.form]}"
        self._store.put(name, label_file(labels, volume.place))
        return Labelled()

    @torch.inference_mode()
    def labels(self, voxels: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the class of each voxel, uint8 (depth, height, width)."""
        mean, std = (float(each[0]) for each in (self.card.image_mean, self.card.image_std))
        normal = torch.from_numpy((voxels - np.float32(mean)) / np.float32(std))[None, None]
        logits = by_windows(self._network, normal.to(self._device), self.card.patch)
        labels: NDArray[np.uint8] = classes_of(logits)[0].cpu().numpy()
        return labels

    def _network(self, patches: Tensor) -> Tensor:
        narrow = self._precision != "fp32"
        kind = DTYPES[self._precision] if narrow else None
        with torch.autocast(self._device.type, kind, enabled=narrow):
            logits: Tensor = self._module(patches)
        return logits.float()
