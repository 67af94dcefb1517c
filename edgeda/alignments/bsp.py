"""BSP: batch spectral penalization (Chen, Wang, Long, Wang, ICML 2019).

1e-4 * (sigma_1(source)^2 + sigma_1(target)^2), with sigma_1 the largest singular value of a batch's features
"""

from __future__ import annotations

from torch import Tensor

from edgeda.alignments.base import Alignment
from edgeda.losses.spectral import spectral_penalty
from edgeda.outputs import Output

WEIGHT = 1e-4
"""The paper's beta."""


class BspAlignment(Alignment):
    """Spectral penalty, as dann,bsp (BSP 2019).

    Adversarial training favours the directions of the largest singular values, which say least of the classes. Alone it
    aligns nothing: it is meant for `--alignment dann,bsp` or `cdan,bsp`. As every loss without a discriminator it is
    ramped with gamma(p); the paper's is constant.
    """

    def forward(self, source: Output, target: Output, source_labels: Tensor, progress: float) -> Tensor:
        """1e-4 * `losses.spectral.spectral_penalty` of both domains' features."""
        return WEIGHT * (spectral_penalty(source.features) + spectral_penalty(target.features))
