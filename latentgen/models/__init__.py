"""The networks: autoencoder, denoiser and discriminator."""

from __future__ import annotations

from latentgen.models.autoencoder import AutoencoderKL
from latentgen.models.discriminator import ADVERSARIAL_LOSSES, AdversarialLoss, PatchDiscriminator
from latentgen.models.posterior import DiagonalGaussian
from latentgen.models.transformer import TextProjections
from latentgen.models.unet import UNet2DConditionModel

__all__ = [
    "ADVERSARIAL_LOSSES",
    "AdversarialLoss",
    "AutoencoderKL",
    "DiagonalGaussian",
    "PatchDiscriminator",
    "TextProjections",
    "UNet2DConditionModel",
]
