"""Paired augmentation: everything moves alike, by what the settings say, the same for the same triple.

Two scenes tell where a pixel came from: `ramp`, whose levels are its own row and column, and `blocks`, whose
colours are those of its classes.
"""

import hashlib
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import max_pool2d
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional

from segray.command_line import load_settings
from segray.errors import SettingsError
from segray.settings import JobSettings
from segray.train.transforms.geometry import Axis
from segray.train.transforms.semantic import augmented, fitted
from segray.train.transforms.strength import PRESETS, AugmentSettings, Strength

FILL = 200
COLOURS = ("brightness", "contrast", "saturation", "hue", "gamma", "blur", "noise")
KNOBS = {
    "smallest_scale": 0.5,
    "largest_scale": 2.0,
    "random_crop": True,
    "object_share": 1.0,
    "flip": 1.0,
    "vertical_flip": 1.0,
    "quarter_turns": 1.0,
    "rotation": 10.0,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
    "gamma": 0.5,
    "blur": 1.5,
    "noise": 8.0,
}
GEOMETRY = {name: value for name, value in KNOBS.items() if name not in COLOURS}
MOVES: list[dict[str, Any]] = [
    {name: GEOMETRY[name]} for name in ("random_crop", "flip", "vertical_flip", "quarter_turns", "rotation")
]
MOVES += [{"smallest_scale": factor, "largest_scale": factor} for factor in (0.5, 0.63, 1.0, 1.37, 2.0)]
MOVES += [GEOMETRY]


def only(**knobs: Any) -> AugmentSettings:
    return AugmentSettings(preset="off", **knobs)


def ramp(height: int = 180, width: int = 220) -> tuple[Tensor, Tensor]:
    """Two bands that hold each pixel's row and column, and a mask of one class."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, cols]).to(torch.uint8), torch.ones(height, width, dtype=torch.uint8)


def blocks(bands: int = 3, height: int = 120, width: int = 150) -> tuple[Tensor, Tensor]:
    """Classes 0 to 6 and some void in blocks of 24 pixels, and a picture in the colours of the classes."""
    classes = torch.randint(0, 7, (1, height // 24 + 1, width // 24 + 1), generator=torch.Generator())
    classes[0, 2:3, 3:4] = 255
    mask = classes.repeat_interleave(24, 1).repeat_interleave(24, 2)[0, :height, :width].to(torch.uint8)
    return palette(bands)[:, mask.long()], mask.contiguous()


def palette(bands: int) -> Tensor:
    """(bands, 256) level of each class; that of void is the filling."""
    levels = (torch.arange(256) * 31 + 7 * torch.arange(bands)[:, None]) % 190
    levels[:, 255] = FILL
    return levels.to(torch.uint8)


def discs(height: int = 160, width: int = 160) -> tuple[Tensor, Tensor, tv_tensors.BoundingBoxes]:
    """An instance map of eight discs with numbers up to 70,000, their classes, their half-open boxes."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    instances = torch.zeros(height, width, dtype=torch.int32)
    for place in range(8):
        row, col, radius = 25 + 36 * (place // 2), 30 + 70 * (place % 2) + place, 8 + place
        instances[(rows - row) ** 2 + (cols - col) ** 2 <= radius**2] = 10_000 * place + 7
    boxes = tight(instances, [10_000 * place + 7 for place in range(8)])
    canvas = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
    return instances, (instances > 0).to(torch.uint8) + (instances > 35_000), canvas


def tight(instances: Tensor, numbers: list[int]) -> Tensor:
    boxes: Tensor = masks_to_boxes(torch.stack([instances == number for number in numbers]))
    boxes[:, 2:] += 1
    return boxes


def moved(scene: tuple[Tensor, Tensor], settings: AugmentSettings, item: int | str, **more: Any) -> Any:
    given: dict[str, Any] = {"crop": 64, "seed": 1, "epoch": 2, "fill": [FILL] * len(scene[0])} | more
    return augmented(*scene, settings=settings, item=str(item), **given)


def far(wrong: Tensor) -> Tensor:
    """(height, width) bool: no pixel within three that is wrong, nor the border, beyond which one may be."""
    wide = torch.ones(wrong.shape[0] + 6, wrong.shape[1] + 6)
    wide[3:-3, 3:-3] = wrong.float()
    return max_pool2d(wide[None], 7, 1)[0] == 0


def source_map(pixels: Tensor, there: Tensor) -> tuple[NDArray[np.float64], float]:
    """(2, 3): source row and column of a `ramp` as linear functions of result row, column, 1; worst error."""
    rows, cols = (each.numpy() for each in torch.nonzero(far(~there), as_tuple=True))
    known = np.stack([rows, cols, np.ones(len(rows))], axis=1)
    found = pixels[:, rows, cols].double().numpy().T
    solution = np.linalg.lstsq(known, found, rcond=None)[0]
    return solution.T, float(np.abs(known @ solution - found).max())


def digest(parts: tuple[Tensor, ...]) -> str:
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


# geometry


@pytest.mark.parametrize("crop", [64, (48, 96), 200])
@pytest.mark.parametrize("knobs", MOVES, ids=lambda knobs: ",".join(knobs))
def test_colours_still_are_those_of_the_classes(knobs: dict[str, Any], crop: int | tuple[int, int]) -> None:
    """Also where there is no picture; and what is interpolated mixes the classes around it."""
    for item in range(6):
        pixels, mask = moved(blocks(), only(**knobs), item, crop=crop)
        assert pixels.shape[1:] == mask.shape == ((crop, crop) if isinstance(crop, int) else crop)
        edges = torch.zeros_like(mask, dtype=torch.bool)
        edges[1:] |= mask[1:] != mask[:-1]
        edges[:, 1:] |= mask[:, 1:] != mask[:, :-1]
        same = far(edges)
        expected = palette(3)[:, mask.long()].int()
        assert same.float().mean() > 0.1
        assert (pixels.int() - expected)[:, same].abs().max() <= 1


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("knobs", MOVES, ids=lambda knobs: ",".join(knobs))
def test_the_mask_is_not_a_part_of_a_pixel_off(knobs: dict[str, Any], fit: str) -> None:
    """Both hold their own row, then their own column: no difference on average.

    A picture that is halved counts in half pixels: the mean of two is not rounded.
    """
    unit = 2 if knobs.get("largest_scale") == 0.5 else 1
    for axis in range(2):
        coordinates = ramp(180 // unit, 220 // unit)[0]
        for item in range(6):
            pixels, mask = moved((unit * coordinates, coordinates[axis]), only(**knobs), item, fit=fit)
            pixels = pixels / unit
            there = mask != 255
            step = np.linalg.norm(source_map(pixels, there)[0][axis, :2])  # source pixels a pixel
            difference = (pixels[axis].float() - mask.float())[far(~there)] / step
            # a slight turn moves whole regions by less than half a pixel, which the nearest one cannot follow
            assert abs(difference.mean()) < (0.3 if knobs == GEOMETRY else 0.01)
            assert difference.abs().max() <= 1 + 0.5 / step


@pytest.mark.parametrize("item", range(30))
def test_a_move_is_a_mirrored_scaled_turn(item: int) -> None:
    """What the pixels say of their source fits one linear map, with the allowed scale and angle."""
    pixels, mask = moved(ramp(), only(**GEOMETRY | {"quarter_turns": 0.0}), item)
    linear, error = source_map(pixels, mask == 1)
    matrix, shift = linear[:, :2], linear[:, 2]
    assert error < 1.6  # rounded by the resize and by the turn
    scale = abs(np.linalg.det(matrix)) ** -0.5
    assert 0.49 < scale < 2.05
    turn = matrix * scale * np.array([[-1], [-1]])  # both flips are always on
    assert np.allclose(turn @ turn.T, np.eye(2), atol=0.03)
    assert abs(np.degrees(np.arctan2(turn[0, 1], turn[0, 0]))) < 10.2
    middle = matrix @ [31.5, 31.5] + shift
    assert -1 < middle[0] < 180
    assert -1 < middle[1] < 220


def test_scales_and_angles_fill_their_ranges() -> None:
    scales, angles = [], []
    for item in range(150):
        knobs = {name: GEOMETRY[name] for name in ("smallest_scale", "largest_scale", "rotation")}
        pixels, mask = moved(ramp(), only(**knobs), item)
        matrix = source_map(pixels, mask == 1)[0][:, :2]
        scales.append(abs(np.linalg.det(matrix)) ** -0.5)
        angles.append(np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])))
    assert 0.49 < min(scales) < 0.53
    assert 1.9 < max(scales) < 2.05
    assert 0.85 < np.median(scales) < 1.18  # as many halved as doubled
    assert -10.1 < min(angles) < -9
    assert 9 < max(angles) < 10.1
    still = np.abs(angles) < 0.05
    assert 0.35 < still.mean() < 0.65


def test_an_angle_is_torchvisions_rotation() -> None:
    """The whole picture turned around the middle of the crop, by the angle that the pixels tell."""
    scene = ramp()
    noise = torch.randint(0, 256, (1, 180, 220), generator=torch.Generator(), dtype=torch.uint8)
    scene = torch.cat([scene[0], noise]), scene[1]
    turned = 0
    for item in range(8):
        pixels, mask = moved(scene, only(rotation=10.0, random_crop=True), item)
        linear, _ = source_map(pixels[:2], mask == 1)
        matrix, shift = linear[:, :2], linear[:, 2]
        angle = float(np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])))
        row, col = np.round(matrix @ [31.5, 31.5] + shift + 0.5).astype(int).tolist()
        whole = functional.rotate(tv_tensors.Image(scene[0]), angle, "bilinear", center=[col, row])
        expected = functional.crop(whole, row - 32, col - 32, 64, 64)
        inside = far(mask != 1)
        assert (pixels.float() - expected.float())[:, inside].abs().mean() < 1.5  # of noise; else about 60
        turned += abs(angle) > 0.5
    assert turned >= 2


@pytest.mark.parametrize("item", range(8))
def test_flips_and_quarter_turns_are_exact(item: int) -> None:
    scene = blocks(3)
    pixels, mask = fitted(*scene, crop=64)
    assert torch.equal(moved(scene, only(flip=1), item)[0], pixels.flip(-1))
    assert torch.equal(moved(scene, only(vertical_flip=1), item)[1], mask.flip(-2))
    found = moved(scene, only(quarter_turns=1), item)
    turns = [count for count in range(4) if torch.equal(found[0], torch.rot90(pixels, count, (1, 2)))]
    assert len(turns) == 1
    assert turns[0] > 0
    assert torch.equal(found[1], torch.rot90(mask, turns[0]))


def test_each_quarter_turn_comes_and_shares_are_kept() -> None:
    scene = blocks(3)
    pixels = fitted(*scene, crop=64)[0]
    counts = [0, 0, 0, 0]
    flips = 0
    for item in range(200):
        found = moved(scene, only(quarter_turns=0.75), item)[0]
        counts = [
            count + torch.equal(found, torch.rot90(pixels, k, (1, 2))) for k, count in enumerate(counts)
        ]
        flips += not torch.equal(moved(scene, only(flip=0.3), item)[0], pixels)
    assert sum(counts) == 200
    assert min(counts) > 30
    assert 35 < flips < 85


def test_random_crops_are_windows_of_the_source_and_reach_its_corners() -> None:
    pixels, mask = ramp(70, 68)
    corners = set()
    for item in range(150):
        found = moved((pixels, mask), only(random_crop=True), item)[0]
        top, left = (int(level) for level in found[:, 0, 0])
        assert torch.equal(found, pixels[:, top : top + 64, left : left + 64])
        corners.add((top, left))
    assert {0, 6} <= {top for top, _ in corners}
    assert {0, 4} <= {left for _, left in corners}
    assert len(corners) > 25  # of 35


@pytest.mark.parametrize("random_crop", [False, True])
def test_a_small_picture_is_padded_with_void(random_crop: bool) -> None:
    scene, places = ramp(40, 30), set()
    instances = tv_tensors.Mask(scene[1].int())
    for item in range(20):
        pixels, mask, found = augmented(
            *scene, instances, settings=only(random_crop=random_crop), crop=64, seed=0, epoch=0,
            item=str(item), fill=[90, 91], void=77,
        )  # fmt: skip
        rows, cols = torch.nonzero(mask == 1, as_tuple=True)
        top, left = int(rows.min()), int(cols.min())
        assert torch.equal(pixels[:, top : top + 40, left : left + 30], scene[0])
        assert (mask == 1).sum() == 40 * 30
        assert (mask == 77).sum() == 64 * 64 - 40 * 30
        assert (pixels[:, mask == 77] == torch.tensor([[90], [91]])).all()
        assert torch.equal(found > 0, mask == 1)
        places.add((top, left))
    assert len(places) > 10 if random_crop else places == {(12, 17)}


def test_what_a_rotation_turns_in_is_void() -> None:
    """A whole picture in its own size: its corners leave, and what takes their place is no picture."""
    areas = []
    for item in range(20):
        pixels, mask = moved(ramp(100, 100), only(rotation=10), item, crop=None, fill=[FILL, FILL])
        areas.append(int((mask == 255).sum()))
        deep = far(mask != 255)
        assert (pixels[:, deep] == FILL).all()
        assert set(mask.unique().tolist()) <= {1, 255}
    assert min(areas) == 0
    assert max(areas) > 500  # 4 triangles at 10 degrees: about 4 * 50^2 * tan(10) / 2 = 880


def test_a_span_has_a_pixel_of_the_picture_and_its_size() -> None:
    for start in (-999, -500, 0):
        span = Axis(source=1, size=10, start=start, window=1000).span(0)
        assert (span.start, span.stop, span.length, span.size) == (0, 1, 1, 10)
        assert min(span.before, span.after) >= 0


# boxes and instance maps


@pytest.mark.parametrize("knobs", MOVES, ids=lambda knobs: ",".join(knobs))
def test_boxes_and_instance_maps_move_with_the_mask(knobs: dict[str, Any]) -> None:
    """Numbers still name their classes; boxes are the bounds of the moved discs, or hulls of turned boxes."""
    instances, mask, boxes = discs()
    table = torch.zeros(80_000, dtype=torch.uint8)
    table[instances.long()] = mask
    hull = 1.0 if "rotation" not in knobs else 1.16  # cos + sin of 10 degrees
    whole = 0
    for item in range(8):
        _, classes, numbers, found = augmented(
            mask[None] * 100, mask, tv_tensors.Mask(instances), boxes, settings=only(**knobs), crop=160,
            seed=1, epoch=0, item=str(item),
        )  # fmt: skip
        assert numbers.dtype == torch.int32
        assert torch.equal(table[numbers.long()], torch.where(classes == 255, 0, classes))
        assert found.shape == boxes.shape
        for place, box in enumerate(found):
            pixels = numbers == 10_000 * place + 7
            if not pixels.any():
                continue
            bounds = tight(numbers, [10_000 * place + 7])[0]
            assert (box[:2] <= bounds[:2] + 1).all()
            assert (box[2:] >= bounds[2:] - 1).all()
            if bounds.min() > 0 and bounds.max() < 160:
                assert (box[2:] - box[:2] <= hull * (bounds[2:] - bounds[:2]) + 3).all()
                whole += 1
    assert whole > 5


@pytest.mark.parametrize("knobs", [{"flip": 1.0}, {"vertical_flip": 1.0}, {"quarter_turns": 1.0}, {}])
def test_boxes_are_exact_where_pixels_are(knobs: dict[str, Any]) -> None:
    instances, mask, boxes = discs()
    for place, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
        instances[top:bottom, left:right] = 10_000 * place + 7
    for item in range(4):
        settings = only(random_crop=True, **knobs)
        _, _, numbers, found = augmented(
            mask[None], mask, tv_tensors.Mask(instances), boxes, settings=settings, crop=(100, 140), seed=1,
            epoch=0, item=str(item),
        )  # fmt: skip
        there = [place for place in range(8) if (numbers == 10_000 * place + 7).any()]
        bounds = tight(numbers, [10_000 * place + 7 for place in there])
        assert len(there) >= 3
        assert torch.allclose(found[there], bounds, atol=1e-3)
        assert all(place in there or (box[2:] == box[:2]).any() for place, box in enumerate(found))


def test_a_box_outside_has_no_area_though_its_edge_would_turn_into_the_crop() -> None:
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([[0.0, 60, 20, 140], [90, 90, 110, 110]]), format="XYXY", canvas_size=(200, 200)
    )
    mask = torch.ones(200, 200, dtype=torch.uint8)
    for item in range(10):
        settings = only(rotation=30)
        found = augmented(
            mask[None], mask, boxes, settings=settings, crop=80, seed=1, epoch=0, item=str(item)
        )
        assert (found[2][0, 2:] == found[2][0, :2]).any()
        assert (found[2][1, 2:] - found[2][1, :2]).min() > 19


# without chance


@pytest.mark.parametrize("crop", [(60, 80), (160, 100), (60, 200), (200, 220)])
def test_fitted_is_torchvisions_centre_crop(crop: tuple[int, int]) -> None:
    pixels, mask = blocks(4)
    found = fitted(pixels, mask, crop=crop, fill=[0, 0, 0, 0])
    assert torch.equal(found[0], functional.center_crop(pixels, list(crop)))
    framed = functional.center_crop(tv_tensors.Mask(mask + 1), list(crop))  # 255 wraps to 0, as does void
    assert torch.equal(found[1], framed.as_subclass(Tensor) - 1)


@pytest.mark.parametrize("size", [32, 320, (90, 150)])
def test_fit_resize_is_torchvisions_resize_of_the_whole(size: int | tuple[int, int]) -> None:
    """The oracle of the mask is Pillow, whose nearest pixel is the one at the middle."""
    pixels, mask = blocks(3)
    height, width = (size, size) if isinstance(size, int) else size
    found = fitted(pixels, mask, crop=size, fit="resize")
    assert torch.equal(found[0], functional.resize(pixels, [height, width]))
    nearest = Image.fromarray(mask.numpy()).resize((width, height), Image.Resampling.NEAREST)
    assert torch.equal(found[1], torch.from_numpy(np.array(nearest)))


@pytest.mark.parametrize("crop", [None, 64, 200])
def test_off_draws_nothing(crop: int | None) -> None:
    pixels, mask = blocks(3)
    expected = fitted(pixels, mask, crop=crop, fill=[FILL] * 3)
    for item in range(10):
        found = moved((pixels, mask), AugmentSettings(preset="off"), item, crop=crop)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    if crop is None:
        assert torch.equal(expected[0], pixels)
        assert torch.equal(expected[1], mask)


def test_with_fit_resize_scales_are_of_the_whole() -> None:
    """A scale of 1/2 puts the whole picture, in its new shape, on a quarter of the crop."""
    pixels, mask = ramp(50, 200)
    halved = only(smallest_scale=0.5, largest_scale=0.5)
    found = moved((pixels, mask), halved, 0, crop=100, fit="resize")[1] == 1
    assert torch.equal(torch.nonzero(found).aminmax(dim=0).min, torch.tensor([25, 25]))
    assert torch.equal(torch.nonzero(found).aminmax(dim=0).max, torch.tensor([74, 74]))
    assert found.sum() == 2500


# chance


ITEMS = [("a.png", 0), ("b.png", 0), ("b.png", 1), ("shard.tar/7", 3)]
RUN = """
from tests.train.test_transforms import triples
print(*triples())
"""


def triples(order: int = 1) -> list[str]:
    settings = AugmentSettings(preset="strong", blur=2, noise=20, object_share=0.5)
    found = {
        (item, epoch, bands): digest(moved(blocks(bands, 500, 600), settings, item, epoch=epoch, crop=256))
        for item, epoch in ITEMS[::order]
        for bands in (3, 5)[::order]
    }
    return [found[key] for key in sorted(found)]


def test_the_same_triple_gives_the_same_bits_in_another_process_order_and_threads() -> None:
    expected = triples()
    torch.manual_seed(99)
    random.seed(99)
    assert triples(-1) == expected
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())}
    run = subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, check=True)
    assert run.stdout.decode().split() == expected
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(triples, (1, -1))) == [expected] * 2


def test_seed_epoch_and_item_each_count() -> None:
    settings = AugmentSettings(preset="light")
    one = [{"seed": 1, "epoch": 2, "item": "a"}]
    others = [{"seed": 2, "epoch": 2, "item": "a"}, {"seed": 1, "epoch": 3, "item": "a"}]
    others += [{"seed": 1, "epoch": 2, "item": "b"}, {"seed": 2, "epoch": 1, "item": "a"}]
    digests = {digest(moved(blocks(), settings, **each)) for each in one + others}  # type: ignore[arg-type]
    assert len(digests) == 5


def test_no_global_random_state_moves_and_the_input_stays() -> None:
    scene = blocks()
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    copies = [part.clone() for part in scene]
    for item in range(10):
        moved(scene, AugmentSettings(preset="strong"), item)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state()) == before[2]
    assert all(torch.equal(part, copy) for part, copy in zip(scene, copies, strict=True))


@pytest.mark.parametrize("knob", KNOBS)
def test_each_knob_has_an_effect(knob: str) -> None:
    scene = blocks()
    scene = (scene[0], torch.where(torch.arange(150) > 120, scene[1], 0))
    expected = fitted(*scene, crop=64, fill=[FILL] * 3)
    found = [moved(scene, only(**{knob: KNOBS[knob]}), item) for item in range(20)]
    assert any(not torch.equal(pixels, expected[0]) for pixels, _ in found)


@pytest.mark.parametrize("knob", COLOURS)
def test_colour_changes_pictures_and_never_masks(knob: str) -> None:
    """Nor the draws of what else there is: the geometry stays that of the item."""
    changed = 0
    for item in range(12):
        with_it = moved(blocks(), only(**GEOMETRY, **{knob: KNOBS[knob]}), item)
        without = moved(blocks(), only(**GEOMETRY), item)
        assert torch.equal(with_it[1], without[1])
        changed += not torch.equal(with_it[0], without[0])
    assert changed >= (1 if knob in ("blur", "noise") else 10)


def test_filling_keeps_its_level_whatever_the_colours() -> None:
    scene = ramp(30, 30)
    settings = only(brightness=0.5, contrast=0.5, gamma=1, noise=20)
    for item in range(10):
        pixels, mask = moved(scene, settings, item)
        assert (pixels[:, mask == 255] == FILL).all()


# objects


def holes(height: int = 256, width: int = 256, *corners: tuple[int, int]) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[:, 100:110] = 255
    for number, (row, col) in enumerate(corners):
        mask[row : row + 12, col : col + 12] = 3 + number
    return mask[None].clone(), mask


@pytest.mark.parametrize("corner", [(100, 180), (0, 0), (250, 250), (0, 128)])
def test_crops_contain_an_object(corner: tuple[int, int]) -> None:
    scene = holes(256, 256, corner)
    shares = {
        share: np.mean([
            bool((moved(scene, only(**GEOMETRY | {"object_share": share}), item)[1] == 3).any())
            for item in range(60)
        ])
        for share in (0.0, 0.5, 1.0)
    }  # fmt: skip
    assert shares[1.0] == 1
    assert shares[0.0] < 0.4 < shares[0.5] < 0.8


def test_objects_are_found_alike_often_and_none_is_no_matter() -> None:
    scene = holes(256, 256, (20, 20), (200, 200))
    settings = only(object_share=1)
    found = [set(moved(scene, settings, item)[1].unique().tolist()) for item in range(60)]
    assert 15 < sum(3 in classes for classes in found) < 45
    assert all(classes & {3, 4} for classes in found)
    dot = holes(256, 256)
    dot[1][131, 77] = 9  # no pixel of the first, coarse look
    assert all((moved(dot, settings, item)[1] == 9).any() for item in range(10))
    middle = fitted(*holes(), crop=64)[1]
    assert torch.equal(moved(holes(), settings, 0)[1], middle)


# pictures and settings


@pytest.mark.parametrize("bands", [1, 3, 4, 10])
@pytest.mark.parametrize("preset", ["off", "light", "strong"])
def test_any_number_of_bands(bands: int, preset: str) -> None:
    for item in range(6):
        pixels, mask = moved(blocks(bands), AugmentSettings(preset=preset), item)
        assert pixels.dtype == mask.dtype == torch.uint8
        assert pixels.shape == (bands, 64, 64)
        assert mask.shape == (64, 64)
        assert pixels.is_contiguous()
        assert mask.is_contiguous()


def test_bands_do_not_touch_each_other() -> None:
    """Ten bands as ten pictures of one, except for saturation and hue (three bands) and the noise."""
    pixels, mask = blocks(10)
    settings = AugmentSettings(preset="strong", noise=0)
    for item in range(6):
        found = moved((pixels, mask), settings, item)[0]
        alone = [moved((pixels[band][None], mask), settings, item)[0] for band in range(10)]
        assert (found.int() - torch.cat(alone).int()).abs().max() <= 1


def test_pixels_may_lie_band_last_in_memory() -> None:
    pixels, mask = blocks(3)
    interleaved = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for item in range(4):
        settings = AugmentSettings(preset="strong")
        found, expected = moved((interleaved, mask), settings, item), moved((pixels, mask), settings, item)
        assert digest(found) == digest(expected)


def test_tiny_pictures_pass() -> None:
    for height, width in ((1, 1), (1, 300), (300, 1), (3, 2)):
        scene = blocks(3, height, width)
        for item in range(10):
            found = moved(scene, AugmentSettings(preset="strong"), item)
            assert found[0].shape == (3, 64, 64)


def test_a_result_of_one_column_is_the_mean_of_what_it_covers() -> None:
    """Torch's own way for bytes gives other levels, or fails, in this shape."""
    pixels, mask = blocks(3, 40, 30)
    found = fitted(pixels, mask, crop=(40, 1), fit="resize")[0]
    expected = functional.resize(pixels.float(), [40, 1])
    assert (found - expected).abs().max() <= 0.5


def test_what_does_not_match_is_refused() -> None:
    pixels, mask = blocks(3)
    instances = tv_tensors.Mask(mask[:-1].int())
    wrong: list[tuple[Any, ...]] = [(pixels.float(), mask), (pixels, mask.int()), (pixels, mask[1:])]
    wrong += [(pixels, mask, instances), (pixels, mask, mask.int())]
    for parts in wrong:
        with pytest.raises(ValueError, match=r"must be|has size"):
            fitted(*parts, crop=64)
    with pytest.raises(ValueError, match="2 levels, the picture 3 bands"):
        fitted(pixels, mask, crop=64, fill=[1, 2])


class Job(JobSettings):
    """A verb with augmentation."""

    augment: AugmentSettings = AugmentSettings()


def test_settings_are_a_preset_and_what_replaces_it() -> None:
    assert [field.name for field in fields(Strength)] == [*AugmentSettings.model_fields][1:] == [*KNOBS]
    assert AugmentSettings().strength == PRESETS["light"]
    settings = AugmentSettings(preset="strong", flip=0, rotation=3)
    assert settings.strength.rotation == 3
    assert settings.strength.flip == 0
    assert settings.strength.blur == PRESETS["strong"].blur
    with pytest.raises(ValidationError, match=r"smallest_scale \(3.0\) is above largest_scale \(2.0\)"):
        AugmentSettings(smallest_scale=3)
    with pytest.raises(ValidationError, match="Extra inputs"):
        AugmentSettings(mirror=1)  # type: ignore[call-arg]


def test_settings_are_flags() -> None:
    flags = ["--augment.preset", "strong", "--augment.vertical-flip", "0", "--no-augment.random-crop"]
    strength = load_settings(Job, flags, "segray train").augment.strength
    assert (strength.vertical_flip, strength.random_crop, strength.rotation) == (0, False, 10)
    with pytest.raises(SettingsError, match=r"augment\.blur: .*greater than or equal to 0"):
        load_settings(Job, ["--augment.blur", "-1"], "segray train")
