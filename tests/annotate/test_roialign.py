"""RoIAlign as sums of rows against torchvision's kernel."""

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from segray.annotate.roialign import BagRoIAlign

SIZES = [(200, 272), (190, 260)]
"""Height and width of two images; the maps are those of the first."""


@pytest.mark.parametrize(("samples", "output"), [(1, 7), (2, 14), (3, (5, 7))])
@pytest.mark.parametrize("levels", [1, 4])
def test_equals_torchvision(samples: int, output: int, levels: int) -> None:
    """Boxes of all sizes, some over the border, on maps of one or four scales, of two images and of none."""
    generator = torch.Generator().manual_seed(samples)
    names = [str(level) for level in range(levels)]
    maps = {
        name: torch.randn(2, 8, 50 >> level, 68 >> level, generator=generator)
        for level, name in enumerate(names)
    }
    pool = MultiScaleRoIAlign(names, output, samples, canonical_scale=56)
    boxes = []
    for count in (200, 300):
        start = torch.rand(count, 2, generator=generator) * torch.tensor([300.0, 220.0]) - 15
        side = torch.rand(count, 2, generator=generator) ** 3 * 250
        boxes.append(torch.cat([start, start + side], 1))
    expected = pool(maps | {"pool": maps["0"]}, boxes, SIZES)
    bags = BagRoIAlign(pool)
    bags.scales, bags.map_levels = pool.scales, pool.map_levels
    torch.testing.assert_close(bags(maps | {"pool": maps["0"]}, boxes, SIZES), expected, rtol=0, atol=1e-5)
    nothing = [each[:0] for each in boxes]
    assert bags(maps, nothing, SIZES).shape == pool(maps, nothing, SIZES).shape
