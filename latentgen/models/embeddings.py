"""Embeddings of numbers: a timestep (or a size) as sines and cosines, then a small perceptron."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.models.attention import merge_heads, sdpa, split_heads
from latentgen.models.resnet import activation

_MAX_PERIOD = 10000


class Timesteps(nn.Module):
    """Sinusoidal embedding of scalars (section 3.5 of arXiv 1706.03762, as DDPM applies it to timesteps).

    Args:
        channels: Size of the embedding.
        flip_sin_to_cos: Cosines first, then sines.
        freq_shift: Subtracted from the number of frequencies in the exponent's denominator.
    """

    def __init__(self, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.channels = channels
        self.flip = flip_sin_to_cos
        self.freq_shift = freq_shift

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B,) -> (B, channels), float32."""
        half = self.channels // 2
        exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) * -math.log(_MAX_PERIOD)
        angles = timesteps[:, None].float() * torch.exp(exponent / (half - self.freq_shift))
        parts = (angles.cos(), angles.sin()) if self.flip else (angles.sin(), angles.cos())
        return F.pad(torch.cat(parts, dim=-1), (0, self.channels % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers with a nonlinearity between them.

    Args:
        in_channels: Size of the input vector.
        out_channels: Size of the hidden and of the output vector.
        act_fn: Nonlinearity between the layers.
        post_act_fn: Nonlinearity after them, None for none.
        cond_proj_dim: Size of a further vector that is projected and added to the input (the guidance scale of
            distilled models, arXiv 2210.03142), None for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        act_fn: str = "silu",
        post_act_fn: str | None = None,
        cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.cond_proj = None if cond_proj_dim is None else nn.Linear(cond_proj_dim, in_channels, bias=False)
        self.act = activation(act_fn)
        self.linear_2 = nn.Linear(out_channels, out_channels)
        self.post_act = nn.Identity() if post_act_fn is None else activation(post_act_fn)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, in_channels) -> (B, out_channels).

        Raises:
            ValueError: A condition was given to a model that has no projection for it.
        """
        if condition is not None:
            if self.cond_proj is None:
                raise ValueError("timestep_cond was given, but time_cond_proj_dim is None in the model's configuration")
            x = x + self.cond_proj(condition)
        return self.post_act(self.linear_2(self.act(self.linear_1(x))))


class AttentionPooling(nn.Module):
    """One token for many: the mean of the tokens asks, the mean and all of them answer (CLIP's, arXiv 2103.00020).

    Args:
        channels: Size of a token.
        heads: Number of attention heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Marks the mean, so that it can be told from the tokens.
        self.positional_embedding = nn.Parameter(torch.randn(1, channels) * channels**-0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, channels) -> (B, channels)."""
        mean = tokens.mean(1, keepdim=True) + self.positional_embedding
        tokens = torch.cat([mean, tokens], dim=1)
        query, key, value = (
            split_heads(layer(x), self.heads)
            for layer, x in ((self.q_proj, mean), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        return merge_heads(sdpa(query, key, value, None))[:, 0]


class TextTimeEmbedding(nn.Module):
    """A whole prompt as one vector that is added to the timestep's, as in DeepFloyd IF.

    Args:
        in_channels: Size of a text token.
        out_channels: Size of the timestep's embedding.
        heads: Heads of the attention that pools the tokens.

    Raises:
        ValueError: `heads` does not divide `in_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or in_channels % heads:
            raise ValueError(
                f"addition_embed_type_num_heads={heads!r} does not divide the {in_channels} channels of a text token; "
                "choose a divisor of it"
            )
        self.norm1 = nn.LayerNorm(in_channels)
        self.pool = AttentionPooling(in_channels, heads)
        self.proj = nn.Linear(in_channels, out_channels)
        self.norm2 = nn.LayerNorm(out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, in_channels) -> (B, out_channels)."""
        return self.norm2(self.proj(self.pool(self.norm1(tokens))))
