"""A causal transformer over a grid of code numbers: each is predicted from those before it, row by row, and from the condition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.nets.attention import split_heads
from synthorax.nets.layers import zeroed

NEIGHBOURS = 4
"""neighbouring codes that come before a position: the one just before, and above to the left, in the middle and to the right"""


class Past:
    """Keys and values of earlier positions, to which a new one attends."""

    def __init__(self, length: int) -> None:
        self.length, self.filled = length, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def add(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Those so far and a new position's, which are [B, heads, 1, C]."""
        if self.keys is None or self.values is None:
            batch, heads, _, channels = key.shape
            self.keys, self.values = (key.new_empty(batch, heads, self.length, channels) for _ in range(2))
        self.keys[:, :, self.filled], self.values[:, :, self.filled] = key[:, :, 0], value[:, :, 0]
        self.filled += 1
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]


class CausalBlock(nn.Module):
    """Attention to a position itself and those before it, and a perceptron, [B, N, C] -> [B, N, C]; with `past`, N is 1."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = zeroed(nn.Linear(width, width))
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), zeroed(nn.Linear(4 * width, width)))

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(self.norm_attention(x)).chunk(3, dim=-1))
        if past is not None:
            key, value = past.add(key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        changed: Tensor = x + self.perceptron(self.norm_perceptron(x))
        return changed


class TokenPrior(nn.Module):
    """p(codes | c) = prod_i p(code_i | codes before i, c_i), row by row (Eq. 1, van den Oord et al. 2016).

    Inputs of a position are its place, the condition, its four neighbouring codes that are known, and features of a coarser grid of
    `below` codes around it, where there is one with half the side; attention brings everything before it.
    """

    def __init__(self, *, num_codes: int, side: int, width: int, depth: int, heads: int, below: int = 0) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"model.prior_width={width} is not a multiple of model.prior_heads={heads}")
        self.num_codes, self.side = num_codes, side
        self.beside = nn.Embedding(NEIGHBOURS * (num_codes + 1), width)
        self.place = nn.Parameter(0.02 * torch.randn(side**2, width))
        self.below = nn.Sequential(nn.Embedding(below, width), _ChannelsFirst(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
                                   nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2)) if below else None
        self.blocks = nn.ModuleList(CausalBlock(width, heads=heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, num_codes)
        with torch.no_grad():
            self.beside.weight.mul_(0.02)

    def forward(self, codes: Tensor, asked: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Logits of each code, [B, s, s] of numbers, [B, width] and the coarser grid [B, s / 2, s / 2] -> [B, K, s, s]."""
        inputs = self._inputs(asked, coarse)
        x = inputs + self._neighbours(self._padded(codes))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.last(self.norm(x))
        return logits.transpose(1, 2).reshape(len(codes), -1, self.side, self.side).float()

    @torch.no_grad()
    def draw(self, uniform: Tensor, asked: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Codes drawn one after the other, each by its own uniform number of [B, s^2] in [0, 1), -> [B, s, s] of numbers.

        What attention needs of earlier positions is kept, so a code costs one position and not the grid.
        """
        inputs = self._inputs(asked, coarse)  # [B, N, width]
        padded = self._padded(torch.full((len(uniform), self.side, self.side), self.num_codes, device=uniform.device))
        pasts = [Past(self.side**2) for _ in self.blocks]
        for position in range(self.side**2):
            row, column = divmod(position, self.side)
            x = inputs[:, position, None] + self._neighbours(padded[:, row:row + 2, column:column + 3])
            for block, past in zip(self.blocks, pasts, strict=True):
                x = block(x, past)
            reach = self.last(self.norm(x))[:, 0].double().softmax(1).cumsum(1)  # [B, K]
            chosen = torch.searchsorted(reach, uniform[:, position, None].double() * reach[:, -1:], right=True)[:, 0]
            padded[:, row + 1, column + 1] = chosen.clamp_max(self.num_codes - 1)
            if column == self.side - 1 and row < self.side - 1:
                padded[:, row + 2, 0] = padded[:, row + 1, -2]  # as `_padded` has it
        return padded[:, 1:, 1:-1]

    def _inputs(self, asked: Tensor, coarse: Tensor | None) -> Tensor:
        inputs = asked[:, None] + self.place
        if self.below is not None:
            inputs = inputs + self.below(coarse).flatten(2).transpose(1, 2)
        return inputs

    def _padded(self, codes: Tensor) -> Tensor:
        """A row above and a column on either side, [B, s, s] -> [B, s + 1, s + 2], filled with the number for no code.

        Left of a row is the last code of the one above: the one just before in reading order.
        """
        padded = F.pad(codes, (1, 1, 1, 0), value=self.num_codes)
        padded[:, 2:, 0] = codes[:, :-1, -1]
        return padded

    def _neighbours(self, padded: Tensor) -> Tensor:
        """Features of the codes next to each position, [B, h + 1, w + 2] -> [B, h w, width]."""
        near = torch.stack([padded[:, 1:, :-2], padded[:, :-1, :-2], padded[:, :-1, 1:-1], padded[:, :-1, 2:]], dim=-1)
        kinds = (self.num_codes + 1) * torch.arange(NEIGHBOURS, device=near.device)
        features: Tensor = self.beside((near + kinds).flatten(1, 2)).sum(2)
        return features


class _ChannelsFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)
