"""The dense CRF against its definition: all pairs of pixels, one after another in a matrix."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from segray.predict.crf import mean_field
from segray.predict.lattice import lattice
from segray.predict.refine import Refinement
from segray.predict.settings import CrfSettings, PredictSettings

CRF = CrfSettings(iterations=5, w1=6, theta_alpha=12, theta_beta=20, w2=2, theta_gamma=2)


def pixels_of(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Two grounds with a slanting edge between them, and a little noise."""
    random = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    image = np.where((cols + rows // 8 < width // 2)[..., None], (70, 90, 60), (160, 140, 150))
    return np.clip(image + random.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def shares_of(height: int, width: int, classes: int, seed: int = 0) -> NDArray[np.float32]:
    """The edge at another place, and a lot of noise; class 2 nowhere for sure."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1, (classes, height, width))
    logits[0, :, : width // 2] += 1.5
    logits[1, :, width // 2 :] += 1.5
    return torch.from_numpy(logits).softmax(0).float().numpy()


def listed(pixels: NDArray[np.uint8], shares: NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor]:
    rows, cols = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    positions = np.stack([cols.ravel(), rows.ravel()], 1).astype(np.float32)
    colours = pixels.reshape(-1, 3).astype(np.float32)
    return (
        torch.from_numpy(shares.reshape(len(shares), -1).T.copy()),
        torch.from_numpy(colours),
        torch.from_numpy(positions),
    )


def by_all_pairs(shares: Tensor, colours: Tensor, positions: Tensor, settings: CrfSettings) -> Tensor:
    """The paper's algorithm 1 with both kernels as n x n matrices."""
    near = torch.cdist(positions, positions) ** 2
    alike = torch.cdist(colours, colours) ** 2
    kernels = (
        settings.w1 * normal(near / settings.theta_alpha**2 + alike / settings.theta_beta**2)
        + settings.w2 * normal(near / settings.theta_gamma**2)
    )  # fmt: skip
    unary, found = -shares.log(), shares
    for _ in range(settings.iterations):
        message = kernels @ found
        pairwise = message.sum(1, keepdim=True) - message  # Potts: one for each other label
        found = (-unary - pairwise).softmax(1)
    return found


def normal(squares: Tensor) -> Tensor:
    kernel = torch.exp(-squares / 2)
    root = kernel.sum(1).rsqrt()
    return root[:, None] * kernel * root


@pytest.mark.parametrize("classes", [2, 4])
def test_mean_field_is_that_of_all_pairs(classes: int) -> None:
    """The lattice is an approximation: of the share of pixels below a hundredth on the mean."""
    given = listed(pixels_of(40, 48), shares_of(40, 48, classes))
    found, expected = mean_field(*given, CRF), by_all_pairs(*given, CRF)
    assert torch.allclose(found.sum(1), torch.ones(len(found)), atol=1e-5)
    assert (found - expected).abs().mean() < 0.01
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.995
    assert (given[0].argmax(1) == expected.argmax(1)).float().mean() < 0.95  # it had something to do


def test_labels_follow_the_edge_of_the_image() -> None:
    pixels, shares = pixels_of(60, 80), shares_of(60, 80, 2)
    rows, cols = np.mgrid[:60, :80]
    truth = ~(cols + rows // 8 < 40)
    before = (shares.argmax(0) == truth).mean()
    found = mean_field(*listed(pixels, shares), CRF).argmax(1).reshape(60, 80).numpy()
    assert before < 0.9
    assert (found == truth).mean() > 0.98


def test_without_weights_nothing_changes() -> None:
    given = listed(pixels_of(20, 20), shares_of(20, 20, 3))
    found = mean_field(*given, CrfSettings(iterations=3, w1=0, w2=0))
    assert torch.allclose(found, given[0], atol=1e-6)


def test_a_gaussian_of_points_in_two_dimensions() -> None:
    points = torch.rand(900, 2, generator=torch.Generator().manual_seed(0)) * 7
    values = torch.rand(900, 3, generator=torch.Generator().manual_seed(1))
    made = lattice(points)
    assert torch.allclose(made.weights.sum(1), torch.ones(900), atol=1e-4)
    kernel = torch.exp(-(torch.cdist(points, points) ** 2) / 2)
    expected = kernel @ values / kernel.sum(1, keepdim=True)
    found = made.filter(values) / made.filter(torch.ones(900, 1))
    assert torch.allclose(found, expected, atol=0.02)


def test_deviations_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="too small for its size"):
        lattice(torch.rand(50, 5) * 1e5)


def refinement(**settings: object) -> Refinement:
    given = PredictSettings(sources=["in"], output="out", weights="w.pt", **settings)  # type: ignore[arg-type]
    return Refinement(given, torch.device("cpu"))


def test_pixels_without_data_have_no_say() -> None:
    """What lies around them is that of the part with data alone, and they keep what they had."""
    pixels, shares = pixels_of(40, 60), (shares_of(40, 60, 3) * 65535).astype(np.uint16)
    nodata = np.zeros((40, 60), bool)
    nodata[:, 35:] = True
    pixels[nodata] = 0
    refine = refinement(crf=CRF)
    found = refine.window(pixels, shares, nodata)
    alone = refine.window(pixels[:, :35], shares[:, :, :35])
    assert np.array_equal(found[:, ~nodata], alone.reshape(3, -1))
    assert np.array_equal(found[:, nodata], shares[:, nodata])
    assert not np.array_equal(found, shares)
    assert refine.window(pixels, shares, np.ones((40, 60), bool)) is shares


def test_windows_give_nearly_the_map_of_the_whole() -> None:
    pixels, shares = pixels_of(150, 200), (shares_of(150, 200, 2) * 65535).astype(np.uint16)
    whole = refinement(crf=CRF).image(pixels, shares)
    windows = refinement(crf=CRF, tile=96, overlap=48).image(pixels, shares)
    assert not np.array_equal(whole, windows)
    assert (whole.argmax(0) == windows.argmax(0)).mean() > 0.995
