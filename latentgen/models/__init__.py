"""The networks: autoencoder, denoiser and discriminator."""

from __future__ import annotations

from latentgen.models.autoencoder import AutoencoderKL
from latentgen.models.posterior import DiagonalGaussian

__all__ = ["AutoencoderKL", "DiagonalGaussian"]
