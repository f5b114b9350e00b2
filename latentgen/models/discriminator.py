"""The critic of the autoencoder: a convolutional network that judges patches, and the losses it is trained with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from latentgen.configuration import one_of
from latentgen.models.base import StrictModel

_SLOPE = 0.2
_MAX_GROUPS = 32
# Channels grow up to this multiple of the first layer's, as in pix2pix.
_WIDEST = 8

# What follows a convolution inside the network; spectral normalisation acts on the convolutions themselves.
_NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "group": lambda channels: nn.GroupNorm(min(_MAX_GROUPS, channels), channels),
    "batch": nn.BatchNorm2d,
    "spectral": None,
    "none": None,
}


class PatchDiscriminator(StrictModel):
    """PatchGAN: one logit for each overlapping patch of a picture (section 3.2 of arXiv 1611.07004, as in VQGAN).

    Three halvings, the default, judge patches of 70x70 pixels.

    Args:
        in_channels: Channels of the picture.
        base_channels: Channels after the first convolution; doubled by each further one, up to eight times. A power
            of two, or a multiple of 32.
        num_layers: Number of halvings.
        norm: "group" judges a picture whatever its neighbours in the batch, so that one process or several take the
            same step; "batch" is the papers' choice; "spectral" bounds every convolution (arXiv 1802.05957); "none".

    Raises:
        ValueError: A value that is not supported.
    """

    @register_to_config
    def __init__(self, in_channels: int = 3, base_channels: int = 64, num_layers: int = 3, norm: str = "group") -> None:
        super().__init__()
        normalise = _NORMS[one_of("norm", norm, _NORMS)]
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers!r}; expected at least 1 halving")
        widths = [in_channels] + [base_channels * min(2**i, _WIDEST) for i in range(num_layers + 1)]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            # A normalisation has its own bias; the first convolution has none after it.
            norms = [normalise(after)] if normalise is not None and i > 0 else []
            stride = 2 if i < num_layers else 1
            layers += [nn.Conv2d(before, after, 4, stride, padding=1, bias=not norms), *norms, nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for conv in [module for module in self.layers if isinstance(module, nn.Conv2d)]:
            nn.init.normal_(conv.weight, std=0.02)
            if norm == "spectral":
                spectral_norm(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W), in [-1, 1], to logits (B, 1, h, w); positive means real."""
        return self.layers(x)


class AdversarialLoss(NamedTuple):
    """One game, as two losses to minimise; both are means over all patches."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss on the logits of real and of generated patches (arXiv 1705.02894), halved as in VQGAN."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """The generator's answer to the hinge: raise the logits (arXiv 1705.02894)."""
    return -fake.mean()


def non_saturating_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Cross entropy of real against generated patches (Eq. 1 of arXiv 1406.2661), halved like the hinge."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def non_saturating_generator_loss(fake: Tensor) -> Tensor:
    """Negative log-probability of being taken for real (section 3 of arXiv 1406.2661)."""
    return F.softplus(-fake).mean()


ADVERSARIAL_LOSSES = {
    "hinge": AdversarialLoss(hinge_discriminator_loss, hinge_generator_loss),
    "non_saturating": AdversarialLoss(non_saturating_discriminator_loss, non_saturating_generator_loss),
}
