"""The transformer denoiser: patches as tokens, and blocks whose normalisation is conditioned on the noise level and the condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.attention import Context, CrossAttention, prepared_context, split_heads
from synthorax.nets.embedding import NoiseEmbedding
from synthorax.nets.layers import Modulation, channels_to_patches, first_layer, patches_to_channels, require_sides, zeroed


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Shape of a diffusion transformer."""

    width: int = 384
    """features of a token"""
    depth: int = 12
    """blocks"""
    heads: int = 6
    """heads of each attention; must divide `width`"""
    patch: int = 4
    """pixels of a token's side"""
    dims: int = 2
    """2 for images, 3 for volumes"""
    context: int = 0
    """width of the context tokens; 0 for none"""
    dropout: float = 0.0
    """probability of dropping a hidden feature of each block's perceptron"""
    embedding: int = 256
    """width of the noise and condition embedding"""


class Transformer(nn.Module):
    """Maps a noisy image and its condition to an image of the same sides (DiT with adaLN-Zero, Peebles and Xie 2023).

    x [B, `inputs`, *S], noise level [B], condition embedding [B, `embedding`], and optionally context tokens [B, T, `context`] with
    those that are stated [B, T] of bool (None: all) -> [B, `outputs`, *S]. S must be multiples of `patch`.
    The last `maps` of the inputs are masks and images of the condition; where all of them are 0 they may be left out.
    """

    def __init__(self, config: TransformerConfig, *, inputs: int = 1, outputs: int = 1, maps: int = 0) -> None:
        super().__init__()
        if config.dims not in (2, 3):
            raise UsageError(f"a network works in 2 or 3 dimensions, not in {config.dims}")
        if config.width % config.heads:
            raise UsageError(f"the transformer's width {config.width} is not a multiple of its {config.heads} heads")
        self.config = config
        embedding, width, pixels = config.embedding, config.width, config.patch**config.dims
        self.noise = nn.Sequential(NoiseEmbedding(embedding), nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.maps = slice((inputs - maps) * pixels, inputs * pixels)  # of the inputs of `first`
        self.first = nn.Linear(self.maps.stop, width)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.affine = zeroed(Modulation(embedding, 2 * width))
        self.last = zeroed(nn.Linear(width, outputs * pixels))

    def forward(self, x: Tensor, noise_level: Tensor, embedding: Tensor, context: Tensor | None = None,
                context_stated: Tensor | None = None) -> Tensor:
        patch = self.config.patch
        require_sides(x, dims=self.config.dims, multiple=patch)
        tokens = prepared_context(context, context_stated, width=self.config.context)
        embedding = F.silu(self.noise(noise_level) + embedding)  # [B, E]
        x = patches_to_channels(x, patch)  # [B, inputs p^dims, *(S / p)]
        sides = x.shape[2:]
        patches = x.flatten(2).transpose(1, 2)  # [B, N, inputs p^dims]
        h = first_layer(self.first, patches[..., :self.maps.start], patches[..., self.maps.start:], where=self.maps)  # [B, N, width]
        h = h + position_embedding(sides, self.config.width, device=h.device).to(h)
        for block in self.blocks:
            h = block(h, embedding, tokens)
        shift, scale = self.affine(embedding)[:, None].chunk(2, dim=-1)
        patches = self.last(self.norm(h) * (1 + scale) + shift)  # [B, N, outputs p^dims]
        return channels_to_patches(patches.transpose(1, 2).unflatten(2, sides), patch)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, and a perceptron, each adding 0 at first, [B, N, C] -> [B, N, C]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.affine = zeroed(Modulation(config.embedding, 6 * width))
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.cross = CrossAttention(width, context=config.context, heads=config.heads) if config.context else None
        self.norm_perceptron = nn.LayerNorm(width, elementwise_affine=False)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Dropout(config.dropout),
                                        nn.Linear(4 * width, width))

    def forward(self, x: Tensor, embedding: Tensor, context: Context | None) -> Tensor:
        shift, scale, gate, shift_perceptron, scale_perceptron, gate_perceptron = self.affine(embedding)[:, None].chunk(6, dim=-1)
        h = self.norm_attention(x) * (1 + scale) + shift
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(h).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # [B, N, C]
        x = x + gate * self.project(mixed)
        if self.cross is not None and context is not None:
            x = self.cross(x, context)
        h = self.norm_perceptron(x) * (1 + scale_perceptron) + shift_perceptron
        gated: Tensor = gate_perceptron * self.perceptron(h)
        return x + gated


def position_embedding(sides: Sequence[int], width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Fixed sines and cosines of each position along each axis, [N, width] with N the product of `sides`.

    Each axis has the same number of features (Sec. 3.5, Vaswani et al. 2017, with 100 where texts need 10,000: an axis has few
    patches, and waves much longer than it would be the same everywhere); those that remain are 0.
    """
    half = width // (2 * len(sides))
    frequencies = 100.0 ** -(torch.arange(half, device=device) / half)
    grid = torch.meshgrid(*(torch.arange(side, device=device, dtype=torch.float32) for side in sides), indexing="ij")
    angles = torch.stack([axis.flatten() for axis in grid], dim=1)[:, :, None] * frequencies  # [N, dims, half]
    features = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)  # [N, dims * 2 half]
    return F.pad(features, (0, width - features.shape[1]))
