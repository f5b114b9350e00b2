"""The autoencoder of latent diffusion: pictures to a Gaussian over latents, and latents back to pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from latentgen.configuration import one_of
from latentgen.models.base import Checkpointed, StrictModel, at_least, groups_fit
from latentgen.models.posterior import DiagonalGaussian
from latentgen.models.resnet import activation
from latentgen.models.unet_blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D

_EPS = 1e-6


@dataclass
class EncoderOutput(BaseOutput):
    """What `AutoencoderKL.encode` returns."""

    latent_dist: DiagonalGaussian


@dataclass
class DecoderOutput(BaseOutput):
    """What `AutoencoderKL.decode` returns."""

    sample: Tensor


class _Stack(Checkpointed):
    """Modules run one after another."""

    def run(self, modules: Sequence[nn.Module], x: Tensor) -> Tensor:
        for module in modules:
            x = self.through(module, x)
        return x


class Encoder(_Stack):
    """Picture (B, C, H, W) to the moments of its latent (B, 2L, H/f, W/f), f = 2^(levels - 1)."""

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        widths: Sequence[int],
        layers: int,
        groups: int,
        act_fn: str,
        attention: bool,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"groups": groups, "eps": _EPS, "act_fn": act_fn}
        levels = list(zip([widths[0], *widths], widths, strict=False))
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock2D(a, b, layers, downsample=i + 1 < len(levels), **shared)
            for i, (a, b) in enumerate(levels)
        )
        self.mid_block = UNetMidBlock2D(widths[-1], widths[-1] if attention else None, **shared)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_act = activation("silu")
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.run([*self.down_blocks, self.mid_block], self.conv_in(x))
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class Decoder(_Stack):
    """Latent (B, L, h, w) to picture (B, C, h*f, w*f), f = 2^(levels - 1)."""

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        widths: Sequence[int],
        layers: int,
        groups: int,
        act_fn: str,
        attention: bool,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"groups": groups, "eps": _EPS, "act_fn": act_fn}
        widths = widths[::-1]
        levels = list(zip([widths[0], *widths], widths, strict=False))
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        # One residual block a level more than the encoder has.
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(a, b, layers + 1, upsample=i + 1 < len(levels), **shared)
            for i, (a, b) in enumerate(levels)
        )
        self.mid_block = UNetMidBlock2D(widths[0], widths[0] if attention else None, **shared)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_act = activation("silu")
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        x = self.run([self.mid_block, *self.up_blocks], self.conv_in(z))
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class AutoencoderKL(StrictModel):
    """Variational autoencoder with a KL-regularised latent (section 3.1 and appendix G of arXiv 2112.10752).

    Keywords, defaults and state-dict keys are those of diffusers' class of the same name. The network is convolutional:
    any height and width that are multiples of `factor` will do.

    Args:
        in_channels: Channels of the picture that goes in.
        out_channels: Channels of the picture that comes out.
        down_block_types: One "DownEncoderBlock2D" a level.
        up_block_types: One "UpDecoderBlock2D" a level.
        block_out_channels: Channels of each level; the picture is halved between levels.
        layers_per_block: Residual blocks a level (the decoder has one more).
        act_fn: Nonlinearity of the residual blocks.
        latent_channels: Channels of the latent.
        norm_num_groups: Groups of every normalisation.
        sample_size: Height and width the model was trained at; information only.
        scaling_factor: `scale_latents` multiplies by it, so that the denoiser sees unit variance (section D.1).
        shift_factor: `scale_latents` subtracts it first, where given.
        latents_mean: Mean of each latent channel, subtracted by `scale_latents`.
        latents_std: Deviation of each latent channel, divided out by `scale_latents`.
        force_upcast: The decoder may overflow in float16; information for pipelines, ours notices it by itself.
        use_quant_conv: Whether a 1x1 convolution follows the encoder.
        use_post_quant_conv: Whether a 1x1 convolution precedes the decoder.
        mid_block_add_attention: Whether both bottlenecks have attention.

    Raises:
        ValueError: A value that is not supported, or that contradicts another.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        for name, blocks, known in (
            ("down_block_types", down_block_types, ("DownEncoderBlock2D",)),
            ("up_block_types", up_block_types, ("UpDecoderBlock2D",)),
        ):
            for block in blocks:
                one_of(name, block, known)
            if len(blocks) != len(block_out_channels):
                raise ValueError(
                    f"{name}={blocks!r} has {len(blocks)} entries; expected {len(block_out_channels)}, one a level"
                )
        at_least("sample_size", sample_size, 1)
        for channels in block_out_channels:
            groups_fit("block_out_channels", channels, norm_num_groups)
        if not (math.isfinite(scaling_factor) and scaling_factor != 0):
            raise ValueError(f"scaling_factor={scaling_factor!r}; expected a finite number other than 0")
        for name, values in (("latents_mean", latents_mean), ("latents_std", latents_std)):
            if values is not None and len(values) != latent_channels:
                raise ValueError(
                    f"{name}={values!r} has {len(values)} entries; expected latent_channels={latent_channels}"
                )
        widths = tuple(block_out_channels)
        shared: dict[str, Any] = {
            "widths": widths,
            "layers": layers_per_block,
            "groups": norm_num_groups,
            "act_fn": act_fn,
        }
        self.encoder = Encoder(in_channels, latent_channels, attention=mid_block_add_attention, **shared)
        self.decoder = Decoder(latent_channels, out_channels, attention=mid_block_add_attention, **shared)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None
        self.factor = 2 ** (len(widths) - 1)

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[DiagonalGaussian]:
        """Pictures (B, C, H, W), in [-1, 1], to the distribution of their latents (B, L, H/factor, W/factor).

        Raises:
            ValueError: Height or width is not a multiple of `factor`.
        """
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"picture of {height}x{width}; expected multiples of {self.factor}: crop, pad or resize it"
            )
        moments = self.encoder(x)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        posterior = DiagonalGaussian(moments)
        return EncoderOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Unscaled latents (B, L, h, w), of any dtype, to pictures (B, C, h*factor, w*factor) in the model's.

        Nothing is drawn from `generator`.
        """
        z = z.to(self.dtype)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        sample = self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode pictures (B, C, H, W), through a draw of the posterior or through its mode."""
        posterior = self.encode(sample).latent_dist
        return self.decode(
            posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict=return_dict
        )

    def scale_latents(self, z: Tensor) -> Tensor:
        """The autoencoder's latents (B, L, h, w) in the denoiser's units: (z - mean - shift) * scaling_factor / std."""
        mean, std = self._latent_statistics(z)
        return (z - mean) * (self.config.scaling_factor / std)

    def unscale_latents(self, z: Tensor) -> Tensor:
        """The inverse of `scale_latents`."""
        mean, std = self._latent_statistics(z)
        return z * (std / self.config.scaling_factor) + mean

    def _latent_statistics(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        def column(values: Sequence[float] | None, default: float) -> Tensor | float:
            return default if values is None else torch.as_tensor(values, dtype=z.dtype, device=z.device)[:, None, None]

        config = self.config
        return column(config.latents_mean, 0.0) + (config.shift_factor or 0.0), column(config.latents_std, 1.0)
