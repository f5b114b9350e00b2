"""Where the text enters the denoiser: transformer blocks over the positions of a feature map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.models.attention import Attention
from latentgen.models.base import Checkpointed
from latentgen.models.resnet import PointwiseConv


@dataclass(frozen=True)
class TextProjections:
    """Keys and values of one batch of prompts for every layer of one network that looks at text.

    Made by `UNet2DConditionModel.project_text`, once a prompt. Valid as long as the network's weights (adapters and
    their scales included) stay what they were.

    Attributes:
        keys_values: For each layer its keys and values, each (B, heads, L, D).
        bias: Added to the scores, (B, 1, 1, L); None where every token counts.
        pooled: What the prompt adds to the timestep embedding, (B, T); None where it adds nothing.
    """

    keys_values: Sequence[tuple[Tensor, Tensor]]
    bias: Tensor | None = None
    pooled: Tensor | None = None


@dataclass(frozen=True)
class TransformerOptions:
    """What the transformers of one level share; keywords as in `UNet2DConditionModel`."""

    heads: int
    cross_attention_dim: int
    norm_num_groups: int = 32
    use_linear_projection: bool = False
    only_cross_attention: bool = False


class TextAttention(Attention):
    """Attention to text; `slot` is its place in `TextProjections.keys_values`, set by the network that owns it."""

    slot: int

    def forward(self, tokens: Tensor, text: TextProjections, masked: bool = True) -> Tensor:  # type: ignore[override]
        """Ask the prompt with `tokens` (B, N, C), leaving out masked words unless told otherwise."""
        key, value = text.keys_values[self.slot]
        return self.attend(tokens, key, value, text.bias if masked else None)


class GEGLU(nn.Module):
    """Gated linear unit with a GELU gate (Eq. 5 of arXiv 2002.05202)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., inner)."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Widen four times, gate, narrow."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Identity stands where the published checkpoints' numbering has a dropout.
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Attention among positions, attention to the text, feed-forward; each after a norm and with a residual."""

    def __init__(self, channels: int, options: TransformerOptions) -> None:
        super().__init__()
        shape: dict[str, Any] = {"heads": options.heads, "dim_head": channels // options.heads}
        text_dim = options.cross_attention_dim
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = (
            TextAttention(channels, text_dim, **shape) if options.only_cross_attention else Attention(channels, **shape)
        )
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = TextAttention(channels, text_dim, **shape)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, text: TextProjections) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        # diffusers does not mask the first attention where it looks at text; trained weights expect the same.
        look = (text, False) if isinstance(self.attn1, TextAttention) else ()
        x = x + self.attn1(self.norm1(x), *look)
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(Checkpointed):
    """Transformer blocks over the positions of a feature map (appendix E.2.1 of arXiv 2112.10752).

    Args:
        channels: Channels of the feature map.
        depth: Number of blocks.
        options: What all transformers of the level share.
    """

    def __init__(self, channels: int, depth: int, options: TransformerOptions) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(options.norm_num_groups, channels, eps=1e-6)
        # Both kinds are the same map; checkpoints differ in the shape of the weight.
        self.linear = options.use_linear_projection
        self.proj_in = nn.Linear(channels, channels) if self.linear else PointwiseConv(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(BasicTransformerBlock(channels, options) for _ in range(depth))
        self.proj_out = nn.Linear(channels, channels) if self.linear else PointwiseConv(channels, channels, 1)

    def forward(self, x: Tensor, text: TextProjections) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        size = x.shape[2:]
        hidden = self.norm(x)
        hidden = self.proj_in(_tokens(hidden)) if self.linear else _tokens(self.proj_in(hidden))
        for block in self.transformer_blocks:
            hidden = self.through(block, hidden, text)
        hidden = _feature_map(self.proj_out(hidden), size) if self.linear else self.proj_out(_feature_map(hidden, size))
        return x + hidden


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C), contiguous; no copy where x is channels-last."""
    return x.flatten(2).transpose(1, 2).contiguous()


def _feature_map(tokens: Tensor, size: torch.Size) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W), channels-last, no copy."""
    return tokens.transpose(1, 2).unflatten(2, size)
