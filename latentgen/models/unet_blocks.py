"""The levels networks are built of: residual blocks, optional attention, and a change of resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from latentgen.configuration import one_of
from latentgen.models.attention import SpatialAttention
from latentgen.models.base import Checkpointed, groups_fit, per_level, required
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


class _Level(Checkpointed):
    """Residual blocks with a transformer after each, or without; each under gradient checkpointing where asked for."""

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
        return self.through(self.resnets[i], x, temb)

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


# For each kind of level: does it look at the text?
_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
_MIDDLE = (None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn")


def build_levels(config: Any, temb_channels: int) -> tuple[nn.ModuleList, nn.Module | None, nn.ModuleList]:
    """Make the way down, the bottleneck and the way up of a U-Net.

    Args:
        config: The keywords of `UNet2DConditionModel`.
        temb_channels: Size of the embedding that the residual blocks are given.

    Raises:
        ValueError: A kind of level that is not supported, or lists that do not fit the number of levels.
    """
    widths = tuple(config.block_out_channels)
    levels = len(widths)
    for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        for block in per_level(name, config[name], levels):
            one_of(name, block, known)
    one_of("mid_block_type", config.mid_block_type, _MIDDLE)
    layers = per_level("layers_per_block", config.layers_per_block, levels)
    depths, up_depths = _depths(config, layers)
    options = _transformer_options(config, widths)
    resnet = {
        "temb_channels": temb_channels,
        "groups": config.norm_num_groups,
        "eps": config.norm_eps,
        "act_fn": config.act_fn,
        "dropout": config.dropout,
        "time_scale_shift": config.resnet_time_scale_shift,
    }

    down_blocks = nn.ModuleList()
    skips = [widths[0]]  # channels of every feature map that the way up will see again
    for i, (before, after) in enumerate(pairwise((widths[0], *widths))):
        transformer = options[i] if _DOWN[config.down_block_types[i]] else None
        halve = i + 1 < levels
        down_blocks.append(DownBlock2D(before, after, depths[i], resnet, transformer, halve, config.downsample_padding))
        skips += [after] * (layers[i] + halve)

    mid_block: nn.Module | None = None
    middle = resnet | {"output_scale_factor": config.mid_block_scale_factor}
    if config.mid_block_type == "UNetMidBlock2DCrossAttn":
        # The bottleneck keeps its self-attention whatever the levels do.
        both = replace(options[-1], only_cross_attention=False)
        mid_block = UNetMidBlock2DCrossAttn(widths[-1], depths[-1][0], middle, both)
    elif config.mid_block_type == "UNetMidBlock2D":
        mid_block = UNetMidBlock2D(widths[-1], None, layers=0, **middle)

    up_blocks = nn.ModuleList()
    for i, (before, after) in enumerate(pairwise((widths[-1], *reversed(widths)))):
        transformer = options[-1 - i] if _UP[config.up_block_types[i]] else None
        arriving = [skips.pop() for _ in up_depths[i]]
        up_blocks.append(UpBlock2D(before, after, arriving, up_depths[i], resnet, transformer, upsample=i + 1 < levels))
    return down_blocks, mid_block, up_blocks


def _depths(config: Any, layers: Sequence[int]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Transformer blocks after every residual block of every level, on the way down and on the way up."""

    def spread(name: str, value: Any, layers: Sequence[int]) -> list[tuple[int, ...]]:
        values = per_level(name, value, len(layers))
        return [per_level(name, depth, n) for depth, n in zip(values, layers, strict=True)]

    name, mirrored = "transformer_layers_per_block", config.reverse_transformer_layers_per_block
    down = spread(name, config.transformer_layers_per_block, layers)
    if mirrored is None:
        if any(isinstance(depth, (list, tuple)) for depth in per_level(name, config[name], len(layers))):
            required(config, f"reverse_{name}")
        mirrored = [level[0] for level in reversed(down)]
    return down, spread(f"reverse_{name}", mirrored, [n + 1 for n in reversed(layers)])


def _transformer_options(config: Any, widths: Sequence[int]) -> list[TransformerOptions]:
    """What the transformers of each level share."""
    levels = len(widths)
    heads = per_level("attention_head_dim", config.attention_head_dim, levels)
    text_dims = per_level("cross_attention_dim", config.cross_attention_dim, levels)
    only_cross = per_level("only_cross_attention", config.only_cross_attention, levels)
    middle = config.mid_block_type == "UNetMidBlock2DCrossAttn"
    down = per_level("down_block_types", config.down_block_types, levels)
    up = per_level("up_block_types", config.up_block_types, levels)
    attends = [_DOWN[down[i]] or _UP[up[-1 - i]] or (middle and i + 1 == levels) for i in range(levels)]
    for channels, count, attending in zip(widths, heads, attends, strict=True):
        groups_fit("block_out_channels", channels, config.norm_num_groups)
        if attending and (count < 1 or channels % count):
            raise ValueError(
                f"attention_head_dim={config.attention_head_dim!r} (the number of heads) does not divide "
                f"block_out_channels={tuple(widths)!r}; choose divisors"
            )
    groups, linear = config.norm_num_groups, config.use_linear_projection
    return [
        TransformerOptions(heads[i], text_dims[i], groups, linear, only_cross_attention=only_cross[i])
        for i in range(levels)
    ]
