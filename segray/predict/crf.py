"""A dense conditional random field over the pixels of an image, by mean field.

P. Krähenbühl and V. Koltun, Efficient inference in fully connected CRFs with Gaussian edge potentials, 2011.
Each pair of pixels with different labels costs

    w1 exp(-|p - p'|² / 2 theta_alpha² - |I - I'|² / 2 theta_beta²) + w2 exp(-|p - p'|² / 2 theta_gamma²)

of positions p, in pixels, and colours I, 0 to 255. As in the authors' own code (of 2013) both kernels K
contain the pixel itself and are normalised symmetrically: D^-1/2 K D^-1/2, D holding the sums of K's rows.

Ours, of torch, for want of a library that installs everywhere: pydensecrf2 (MIT, the authors' code in it
BSD-3), pydensecrf (a release candidate of 2018) and SimpleCRF (BSD-3, 2021) have no wheel for Linux, so each
worker would need a C++ compiler; crfseg (MIT, 2020) looks at a window of some pixels, not at all pairs.
"""

import torch
from torch import Tensor

from segray.predict.lattice import Lattice, lattice
from segray.predict.settings import CrfSettings

_LEAST = 0.5 / 65_535
"""In place of a probability of 0: half of the smallest 16-bit one."""


class _Kernel:
    """One Gaussian kernel over n pixels, normalised symmetrically."""

    def __init__(self, features: Tensor, weight: float) -> None:
        self._lattice: Lattice = lattice(features)
        sums = self._lattice.filter(torch.ones(len(features), 1, device=features.device))
        self._root, self._weight = sums.rsqrt(), weight

    def messages(self, shares: Tensor) -> Tensor:
        """Return (n, classes) of the same shape of probabilities."""
        return self._lattice.filter(shares * self._root) * (self._root * self._weight)


def mean_field(probabilities: Tensor, colours: Tensor, positions: Tensor, settings: CrfSettings) -> Tensor:
    """Return probabilities (n, classes) float32 of n pixels after `settings.iterations` rounds of mean field.

    probabilities: (n, classes) float32 of the network. colours: (n, 3) float32, 0 to 255. positions: (n, 2)
    float32, in pixels. All on one device. Raises ValueError for deviations too small for the image.
    """
    places = positions / settings.theta_alpha
    kernels = [
        _Kernel(torch.cat([places, colours / settings.theta_beta], 1), settings.w1),
        _Kernel(positions / settings.theta_gamma, settings.w2),
    ]
    logits = probabilities.clamp(min=_LEAST).log_()
    shares = logits.softmax(1)
    for _ in range(settings.iterations):
        messages = logits.clone()
        for kernel in kernels:
            messages += kernel.messages(shares)
        shares = messages.softmax(1)
    return shares
