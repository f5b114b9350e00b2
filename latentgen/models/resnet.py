"""The convolutional parts of U-Net and autoencoder: residual block, halving and doubling of the resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.configuration import one_of
from latentgen.models.base import groups_fit

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}


def activation(name: str) -> nn.Module:
    """The nonlinearity called `name`.

    Raises:
        ValueError: No such nonlinearity.
    """
    return ACTIVATIONS[one_of("act_fn", name, ACTIVATIONS)]()


class PointwiseConv(nn.Conv2d):
    """1x1 convolution; on the CPU, over channels-last pictures, a matrix product, which is faster there.

    The constructor stays that of Conv2d: peft builds its factors with the type of the layer that it adapts.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        if x.device.type == "cpu" and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            pixels = x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C), a view
            return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(x)


class ResnetBlock2D(nn.Module):
    """Residual block with group normalisation and, in the U-Net, a timestep's shift (or scale and shift) in the middle.

    The block of DDPM (appendix B of arXiv 2006.11239); scale and shift as in Eq. 3 of arXiv 2102.09672 (appendix A).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; a 1x1 convolution carries the residual where they differ.
        temb_channels: Channels of the timestep embedding, None where there is none.
        groups: Groups of both normalisations.
        eps: Added to the variance.
        act_fn: Nonlinearity.
        dropout: Probability before the second convolution.
        time_scale_shift: "default" adds the projected embedding, "scale_shift" modulates the second norm by it.
        output_scale_factor: The sum of both branches is divided by it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int | None = None,
        groups: int = 32,
        eps: float = 1e-6,
        act_fn: str = "silu",
        dropout: float = 0.0,
        time_scale_shift: str = "default",
        output_scale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        one_of("resnet_time_scale_shift", time_scale_shift, ("default", "scale_shift"))
        groups_fit("ResnetBlock2D", in_channels, groups)
        groups_fit("ResnetBlock2D", out_channels, groups)
        self.modulates = time_scale_shift == "scale_shift"
        self.output_scale_factor = output_scale_factor
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None
        if temb_channels is not None:
            self.time_emb_proj = nn.Linear(temb_channels, out_channels * (2 if self.modulates else 1))
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = activation(act_fn)
        self.conv_shortcut = PointwiseConv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """(B, C_in, H, W), timestep embedding (B, T) after its nonlinearity -> (B, C_out, H, W)."""
        hidden = self.conv1(self.nonlinearity(self.norm1(x)))
        if self.time_emb_proj is None:
            hidden = self.norm2(hidden)
        elif self.modulates:
            scale, shift = self.time_emb_proj(temb)[:, :, None, None].chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.norm2(hidden), 1 + scale)
        else:
            hidden = self.norm2(hidden + self.time_emb_proj(temb)[:, :, None, None])
        hidden = self.conv2(self.dropout(self.nonlinearity(hidden)))
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        hidden = residual + hidden
        return hidden if self.output_scale_factor == 1.0 else hidden / self.output_scale_factor


class Downsample2D(nn.Module):
    """Halve height and width by a strided 3x3 convolution.

    Args:
        channels: Channels in and out.
        padding: 1 pads all sides; 0 pads right and bottom only, as the weights of Stable Diffusion's
            autoencoders expect.
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.asymmetric = padding == 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2)), floor where the padding is asymmetric."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample2D(nn.Module):
    """Repeat every position, twice each way or up to a given size, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size | tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or (B, C, *size)."""
        x = F.interpolate(x, scale_factor=2.0) if size is None else F.interpolate(x, size=tuple(size))
        return self.conv(x)
