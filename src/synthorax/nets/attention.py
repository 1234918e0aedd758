"""Attention of image features to one another, and to the tokens of a context such as a text."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.group_norm import normalised
from synthorax.nets.layers import convolution, normalisation, zeroed


class Context(NamedTuple):
    """Tokens for cross-attention, and which of them are stated."""

    tokens: Tensor
    """[B, T, width], 0 where not stated: without biases, a row of zeros adds 0"""
    visible: Tensor
    """[B, 1, 1, T] of bool: tokens that take part in the softmax; all of them in a row that states none, where it would be 0 / 0"""


def prepared_context(tokens: Tensor | None, stated: Tensor | None, *, width: int) -> Context | None:
    """Tokens [B, T, width] and which are stated [B, T] of bool (None: all) as the blocks need them; None if there are none."""
    if tokens is None:
        return None
    if not width:
        raise UsageError("this network has no cross-attention and cannot be conditioned on a context; build it with the context's width")
    if tokens.shape[-1] != width:
        raise UsageError(f"the context tokens have {tokens.shape[-1]} features where the network expects {width}")
    if tokens.shape[1] == 0:
        return None
    if stated is None:
        stated = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return Context(tokens=tokens.masked_fill(~stated[:, :, None], 0.0), visible=(stated | ~stated.any(dim=1, keepdim=True))[:, None, None])


class SelfAttention(nn.Module):
    """Self-attention over all positions with a residual, [B, C, *S] -> [B, C, *S]."""

    def __init__(self, channels: int, *, dims: int) -> None:
        super().__init__()
        self.heads = heads_for(channels)
        self.norm = normalisation(channels)
        self.qkv = convolution(channels, 3 * channels, 1, dims=dims)
        self.project = zeroed(convolution(channels, channels, 1, dims=dims))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.qkv(normalised(x, self.norm)).flatten(2).transpose(1, 2).contiguous()  # [B, N, 3 C], as fast attention wants it
        query, key, value = (split_heads(part, self.heads) for part in tokens.chunk(3, dim=-1))  # each [B, heads, N, C / heads]
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.project(mixed.transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape))
        return x + projected


class CrossAttention(nn.Module):
    """Attention to the stated tokens of a context with a residual, [B, N, C] -> [B, N, C]; a row that states nothing adds exactly 0."""

    def __init__(self, channels: int, *, context: int, heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads or heads_for(channels)
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(context, 2 * channels, bias=False)
        self.project = zeroed(nn.Linear(channels, channels, bias=False))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        query = split_heads(self.query(self.norm(x)), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.key_value(context.tokens).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=context.visible)
        projected: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return x + projected


def heads_for(channels: int) -> int:
    """Number of heads of about 64 channels each, which is the best width by Table 2 of Dhariwal and Nichol (2021)."""
    return next(heads for heads in range(max(1, channels // 64), 0, -1) if channels % heads == 0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, C] -> [B, heads, N, C / heads]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
