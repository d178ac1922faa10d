"""The in-place pyramid against torchvision's."""

import copy
from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from segray.annotate.fpn import InPlacePyramid


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sides", [[(48, 32), (24, 16), (12, 8)], [(25, 33), (13, 17), (7, 9)]])
def test_equals_torchvision(
    sides: list[tuple[int, int]], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """Bit by bit; the second sizes are not doubles of each other."""
    torch.manual_seed(0)
    theirs = FeaturePyramidNetwork([8, 16, 24], 12, LastLevelMaxPool()).to(dtype, memory_format=layout)
    ours = copy.deepcopy(theirs)
    ours.__class__ = InPlacePyramid
    maps = OrderedDict(
        (str(level), torch.randn(2, channels, *side).to(dtype, memory_format=layout))
        for level, (channels, side) in enumerate(zip([8, 16, 24], sides, strict=True))
    )
    with torch.inference_mode():
        wanted, found = theirs(maps), ours(maps)
    assert list(found) == list(wanted) == ["0", "1", "2", "pool"]
    for name, each in wanted.items():
        assert torch.equal(found[name], each)
        assert found[name].stride() == each.stride()
