"""The levels networks are built of: residual blocks, optional attention, and a change of resolution."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from latentgen.models.attention import SpatialAttention
from latentgen.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D


class DownEncoderBlock2D(nn.Module):
    """One level of the autoencoder's encoder."""

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, downsample: bool, **resnet: Any) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        self.resnets = nn.ModuleList(ResnetBlock2D(a, b, **resnet) for a, b in zip(widths, widths[1:], strict=False))
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)]) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H/2, W/2), or unchanged H and W on the last level."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class UpDecoderBlock2D(nn.Module):
    """One level of the autoencoder's decoder."""

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, upsample: bool, **resnet: Any) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        self.resnets = nn.ModuleList(ResnetBlock2D(a, b, **resnet) for a, b in zip(widths, widths[1:], strict=False))
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W), or unchanged H and W on the last level."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class UNetMidBlock2D(nn.Module):
    """Residual, optional attention over positions, residual: the bottleneck without text."""

    def __init__(self, channels: int, attention_head_dim: int | None, **resnet: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, channels, **resnet) for _ in range(2))
        self.attentions = nn.ModuleList()
        if attention_head_dim is not None:
            eps = resnet.get("eps", 1e-6)
            self.attentions.append(SpatialAttention(channels, attention_head_dim, resnet.get("groups", 32), eps))

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.resnets[0](x, temb)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x, temb)
