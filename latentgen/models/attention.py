"""Dot-product attention: the one place where queries, keys and values meet, and the layers that make them."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

# Queries (B, heads, N, D), keys and values (B, heads, M, D), a bias on the scores that broadcasts to (B, heads, N, M)
# or None; the result is (B, heads, N, D). Scores and softmax are accumulated in float32, whatever the tokens are.
Backend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Attention by torch's own fused kernels."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def explicit(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Attention by its definition (Eq. 1 of arXiv 1706.03762), two matrix products around a softmax, in float32."""
    scores = query.float() * query.shape[-1] ** -0.5 @ key.float().transpose(-1, -2)  # (B, heads, N, M)
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(dim=-1) @ value.float()).to(query.dtype)


BACKENDS: dict[str, Backend] = {"sdpa": sdpa, "math": explicit}
DEFAULT_BACKEND = "sdpa"


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, heads*D) -> (B, heads, N, D), a view."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """(B, heads, N, D) -> (B, N, heads*D)."""
    return tokens.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head attention over token sequences.

    Args:
        query_dim: Channels of the tokens that ask, and of the output.
        context_dim: Channels of the tokens that answer; None for self-attention.
        heads: Number of heads.
        dim_head: Channels of one head.
        bias: Whether the query, key and value projections have one.
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        bias: bool = False,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.backend = DEFAULT_BACKEND
        self.to_q = nn.Linear(query_dim, inner, bias=bias)
        self.to_k = nn.Linear(context_dim, inner, bias=bias)
        self.to_v = nn.Linear(context_dim, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, query_dim)])

    def project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `context`, each (B, heads, M, D)."""
        return split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)

    def attend(self, tokens: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Ask with `tokens` (B, N, C); `bias` is added to the scores and broadcasts to (B, heads, N, M)."""
        query = split_heads(self.to_q(tokens), self.heads)
        return self.to_out[0](merge_heads(BACKENDS[self.backend](query, key, value, bias)))

    def forward(self, tokens: Tensor, context: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Attend from `tokens` (B, N, C) to `context` (B, M, E), or to themselves."""
        return self.attend(tokens, *self.project(tokens if context is None else context), bias)


class SpatialAttention(Attention):
    """Single-scale self-attention over the positions of a feature map, with its norm and its residual connection.

    The bottleneck of the autoencoder (appendix G.2 of arXiv 2112.10752). Old checkpoints name the projections
    query, key, value and proj_attn; both spellings load.
    """

    # diffusers' loader renames the old keys of modules that carry this mark.
    _from_deprecated_attn_block = True
    _OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def __init__(self, channels: int, dim_head: int, groups: int, eps: float = 1e-6) -> None:
        super().__init__(channels, heads=channels // dim_head, dim_head=dim_head, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)
        self.register_load_state_dict_pre_hook(self._rename_old_keys)

    @staticmethod
    def _rename_old_keys(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
        for old, new in SpatialAttention._OLD_NAMES.items():
            for part in ("weight", "bias"):
                if (key := f"{prefix}{old}.{part}") in state_dict:
                    state_dict[f"{prefix}{new}.{part}"] = state_dict.pop(key)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, H*W, C)
        tokens = super().forward(tokens)
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, H*W, C) -> (B, C, H, W)
