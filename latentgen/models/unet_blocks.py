"""The levels networks are built of: residual blocks, optional attention, and a change of resolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from latentgen.models.attention import SpatialAttention
from latentgen.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from latentgen.models.transformer import TextProjections, Transformer2DModel, TransformerOptions


class DownEncoderBlock2D(nn.Module):
    """One level of the autoencoder's encoder."""

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, downsample: bool, **resnet: Any) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        self.resnets = nn.ModuleList(ResnetBlock2D(a, b, **resnet) for a, b in pairwise(widths))
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
        self.resnets = nn.ModuleList(ResnetBlock2D(a, b, **resnet) for a, b in pairwise(widths))
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W), or unchanged H and W on the last level."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class UNetMidBlock2D(nn.Module):
    """Residual, attention over positions, residual: a bottleneck without text.

    Args:
        channels: Channels in and out.
        attention_head_dim: Channels of an attention head; None for no attention.
        layers: Number of (attention, residual) pairs after the first residual.
        **resnet: Keywords of `ResnetBlock2D`.
    """

    def __init__(self, channels: int, attention_head_dim: int | None, layers: int = 1, **resnet: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, channels, **resnet) for _ in range(layers + 1))
        self.attentions = nn.ModuleList()
        if attention_head_dim is not None:
            norm = {"groups": resnet["groups"], "eps": resnet["eps"]}
            self.attentions.extend(SpatialAttention(channels, attention_head_dim, **norm) for _ in range(layers))

    def forward(self, x: Tensor, temb: Tensor | None = None, text: TextProjections | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.resnets[0](x, temb)
        for i, resnet in enumerate(self.resnets[1:]):
            x = resnet(self.attentions[i](x) if self.attentions else x, temb)
        return x


class _Level(nn.Module):
    """Residual blocks with a transformer after each, or without; each under gradient checkpointing where asked for."""

    gradient_checkpointing = False

    def __init__(
        self,
        widths: Sequence[tuple[int, int]],
        resnet: dict[str, Any],
        transformer: TransformerOptions | None,
        depths: Sequence[int],
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(a, b, **resnet) for a, b in widths)
        if transformer is not None:
            channels = widths[0][1]
            self.attentions = nn.ModuleList(Transformer2DModel(channels, depth, transformer) for depth in depths)

    @property
    def has_cross_attention(self) -> bool:
        """Whether the level looks at the text."""
        return hasattr(self, "attentions")

    def resnet(self, i: int, x: Tensor, temb: Tensor) -> Tensor:
        """The i-th residual block."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.resnets[i], x, temb)
        return self.resnets[i](x, temb)

    def look(self, i: int, x: Tensor, text: TextProjections) -> Tensor:
        """The i-th transformer, which checkpoints its own blocks."""
        return self.attentions[i](x, text) if self.has_cross_attention else x


class DownBlock2D(_Level):
    """One level of the U-Net on the way down: DownBlock2D, or CrossAttnDownBlock2D where `transformer` is given.

    Args:
        in_channels: Channels of the level above.
        out_channels: Channels of this level.
        depths: Transformer blocks after each residual block; its length is the number of residual blocks.
        resnet: Keywords of `ResnetBlock2D`.
        transformer: Options of the transformers, None for a level without text.
        downsample: Whether the level ends by halving the resolution.
        padding: Padding of the halving convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depths: Sequence[int],
        resnet: dict[str, Any],
        transformer: TransformerOptions | None,
        downsample: bool,
        padding: int = 1,
    ) -> None:
        widths = list(pairwise([in_channels] + [out_channels] * len(depths)))
        super().__init__(widths, resnet, transformer, depths)
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding)]) if downsample else None

    def forward(self, x: Tensor, temb: Tensor, text: TextProjections) -> tuple[Tensor, list[Tensor]]:
        """(B, C_in, H, W) -> (B, C_out, H/2, W/2), and what the way up will want to see again."""
        skips = []
        for i in range(len(self.resnets)):
            x = self.look(i, self.resnet(i, x, temb), text)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class UNetMidBlock2DCrossAttn(_Level):
    """The bottleneck: residual, transformer, residual."""

    def __init__(self, channels: int, depth: int, resnet: dict[str, Any], transformer: TransformerOptions) -> None:
        super().__init__([(channels, channels)] * 2, resnet, transformer, [depth])

    def forward(self, x: Tensor, temb: Tensor, text: TextProjections) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.resnet(1, self.look(0, self.resnet(0, x, temb), text), temb)


class UpBlock2D(_Level):
    """One level of the U-Net on the way up: UpBlock2D, or CrossAttnUpBlock2D where `transformer` is given.

    Args:
        in_channels: Channels of the level below.
        out_channels: Channels of this level.
        skip_channels: Channels of each feature map that comes over from the way down, in the order of use.
        depths: Transformer blocks after each residual block.
        resnet: Keywords of `ResnetBlock2D`.
        transformer: Options of the transformers, None for a level without text.
        upsample: Whether the level ends by raising the resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        skip_channels: Sequence[int],
        depths: Sequence[int],
        resnet: dict[str, Any],
        transformer: TransformerOptions | None,
        upsample: bool,
    ) -> None:
        arriving = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        widths = [(a + skip, out_channels) for a, skip in zip(arriving, skip_channels, strict=True)]
        super().__init__(widths, resnet, transformer, depths)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if upsample else None

    def forward(self, x: Tensor, temb: Tensor, text: TextProjections, skips: list[Tensor]) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, H, W). Takes its feature maps off the end of `skips`.

        The result has the size of the next one there, so that sizes which do not halve evenly come back as they were.
        """
        for i in range(len(self.resnets)):
            x = torch.cat([x, skips.pop()], dim=1)
            x = self.look(i, self.resnet(i, x, temb), text)
        return x if self.upsamplers is None else self.upsamplers[0](x, skips[-1].shape[2:])
