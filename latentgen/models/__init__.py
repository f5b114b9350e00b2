"""The networks: autoencoder, denoiser and discriminator."""

from __future__ import annotations

from latentgen.models.autoencoder import AutoencoderKL
from latentgen.models.posterior import DiagonalGaussian
from latentgen.models.transformer import TextProjections
from latentgen.models.unet import UNet2DConditionModel

__all__ = ["AutoencoderKL", "DiagonalGaussian", "TextProjections", "UNet2DConditionModel"]
