"""RoIAlign on a CPU as weighted sums of rows.

Each output cell is a weighted sum of pixels of one feature map (He et al., https://arxiv.org/abs/1703.06870,
section 3): with s x s samples a cell, (2 s)^2 pixels, the same for all channels. With the channels innermost
that is `embedding_bag`, which torch vectorises and runs on all threads; torchvision's kernel for CPUs
computes one number after the other on one thread.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from torchvision.ops import MultiScaleRoIAlign


class BagRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """torchvision's MultiScaleRoIAlign with a fixed sampling ratio, equal to it up to rounding.

    Its `scales` and `map_levels` must be set before it is called.
    """

    def __init__(self, pool: MultiScaleRoIAlign) -> None:
        super().__init__(
            pool.featmap_names,
            pool.output_size,
            pool.sampling_ratio,
            canonical_scale=pool.canonical_scale,
            canonical_level=pool.canonical_level,
        )

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], _image_shapes: object) -> Tensor:
        """Return (n, channels, *output_size), channels innermost; boxes: (n, 4) of each image, n in all."""
        maps = [x[name] for name in x if name in self.featmap_names]
        rois, level = torch.cat(boxes), self._levels(boxes)
        sizes = torch.tensor([each.shape[2:] for each in maps])
        starts = torch.tensor([0] + [len(each) * each[0, 0].numel() for each in maps]).cumsum(0)
        image = torch.repeat_interleave(torch.tensor([len(each) for each in boxes]))
        height, width = sizes[level].unbind(1)
        corners = rois * torch.tensor(self.scales)[level, None]
        rows, row_weights = self._taps(corners[:, 1], corners[:, 3], height, self.output_size[0])
        cols, col_weights = self._taps(corners[:, 0], corners[:, 2], width, self.output_size[1])
        first = starts[level] + image * height * width
        rows = first[:, None, None] + rows * width[:, None, None]
        pixels = rows[:, :, None, :, None] + cols[:, None, :, None, :]
        weights = row_weights[:, :, None, :, None] * col_weights[:, None, :, None, :]
        table = self._table(x, maps)
        cells = embedding_bag(
            pixels.flatten(3).flatten(0, 2).int(),
            table,
            per_sample_weights=weights.flatten(3).flatten(0, 2).to(table.dtype),
            mode="sum",
        )
        return cells.view(len(rois), *self.output_size, table.shape[1]).permute(0, 3, 1, 2)

    def _table(self, x: dict[str, Tensor], maps: list[Tensor]) -> Tensor:
        """Return the pixels of all maps, one per row; cached in `x`, for the pool of the masks."""
        name = f"rows of {self.featmap_names}"
        if name not in x:
            x[name] = torch.cat([each.permute(0, 2, 3, 1).flatten(0, 2) for each in maps])
        return x[name]

    def _levels(self, boxes: list[Tensor]) -> Tensor:
        if len(self.scales) == 1:
            return torch.zeros(sum(map(len, boxes)), dtype=torch.int64)
        levels: Tensor = self.map_levels(boxes)
        return levels

    def _taps(self, start: Tensor, stop: Tensor, size: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        """Return the pixels and weights of each cell's samples along one axis: both (n, cells, 2 * samples).

        start, stop: (n,), of the boxes in pixels of their map; size: (n,), of the map. As in torchvision's
        kernel with `aligned=False`: boxes have at least one pixel, pixels beyond the border repeat it,
        samples more than one pixel beyond count as zero.
        """
        samples = self.sampling_ratio
        side = (stop - start).clamp(min=1)[:, None, None] / cells
        cell, sample = torch.arange(cells)[:, None], torch.arange(samples) + 0.5
        at = (start[:, None, None] + cell * side + sample * side / samples).flatten(1)
        last = size[:, None] - 1
        inside = (at >= -1) & (at <= size[:, None])
        at = at.clamp(min=0)
        low = torch.minimum(at.long(), last)
        part = torch.where(low == last, 0, at - low)
        weights = torch.stack([1 - part, part], 2) * (inside / samples)[:, :, None]
        pixels = torch.stack([low, torch.minimum(low + 1, last)], 2)
        return pixels.view(-1, cells, 2 * samples), weights.view(-1, cells, 2 * samples)
