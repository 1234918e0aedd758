"""A codebook that turns each latent vector into the nearest of K learned ones (van den Oord et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synthorax.errors import UsageError
from synthorax.rng import Draws

DECAY = 0.99
"""Part of the running counts and sums that one batch leaves in place (Appendix A.1, van den Oord et al. 2017)."""
DEAD = 0.03
"""A code is dead if it is chosen less often than this fraction of equal use."""
REVIVED = 0.1
"""Count of a code with a new place, in the same parts: it has some hundred batches to be chosen, and moves easily."""


class Quantizer(nn.Module):
    """K code vectors, each the running mean of the latent vectors that chose it.

    Codes are buffers and move by `learn`, not by gradients: only the latents decide where they lie. With
    several processes, the first one's codes hold for all. With `gradient`, a parameter is added to them and moves by the gradient of
    `distance` (Eq. 3, van den Oord et al. 2017), and `learn` only counts and revives.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, *, num_codes: int, channels: int, gradient: bool = False) -> None:
        super().__init__()
        if num_codes < 2:
            raise UsageError(f"a codebook needs at least 2 codes, not {num_codes}")
        codes = torch.randn(num_codes, channels)
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros_like(codes))
        self.moved = nn.Parameter(torch.zeros_like(codes)) if gradient else None

    @property
    def places(self) -> Tensor:
        """Where the codes lie, [K, C]."""
        return self.codes if self.moved is None else self.codes + self.moved

    def forward(self, latents: Tensor) -> Tensor:
        """The nearest codes, [B, C, h, w] -> the same; their gradient goes straight through to the latents (Sec. 3.2)."""
        chosen = self.look_up(self.indices(latents))
        return latents + (chosen - latents).detach()

    def indices(self, latents: Tensor) -> Tensor:
        """Which code is nearest to each vector, [B, C, h, w] -> [B, h, w] (Eq. 1)."""
        numbers, _ = self._nearest(_vectors(latents))
        return numbers.reshape(len(latents), *latents.shape[2:])

    def look_up(self, indices: Tensor) -> Tensor:
        """The vectors of codes by number, [B, h, w] -> [B, C, h, w]."""
        return self.places[indices].movedim(-1, 1)

    def distance(self, latents: Tensor) -> Tensor:
        """Mean squared distance of the nearest codes from the vectors [B, C, h, w], [B]; its gradient moves codes alone."""
        return (self.look_up(self.indices(latents)) - latents.detach()).square().flatten(1).mean(1)

    @torch.no_grad()
    def learn(self, latents: Tensor) -> None:
        """Give dead codes new places, then move each code towards the vectors [B, C, h, w] that chose it (Eq. 6 to 8).

        A dead code moves onto one of the vectors that are farthest from their codes, spread over the worse half of them, without chance.
        In the first call all codes are dead.
        """
        vectors = _vectors(latents)
        expected = len(vectors) / len(self.codes)
        dead = (self.counts < DEAD * expected).nonzero()[:, 0]
        _, distances = self._nearest(vectors)
        worse = distances.argsort(descending=True, stable=True)[: max(1, len(vectors) // 2)]
        spread = torch.linspace(0, len(worse) - 1, len(dead), device=worse.device).long()
        self.codes[dead], self.counts[dead] = vectors[worse[spread]], REVIVED * expected
        if self.moved is not None:
            self.codes[dead] -= self.moved[dead]
        self.sums[dead] = self.codes[dead] * self.counts[dead, None]

        numbers, _ = self._nearest(vectors)
        self.counts.lerp_(torch.bincount(numbers, minlength=len(self.codes)).to(self.counts), 1 - DECAY)
        if self.moved is not None:
            return
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, numbers, vectors), 1 - DECAY)
        self.codes.copy_(self.sums / self.counts[:, None])

    def usage(self) -> Tensor:
        """How often each code was chosen recently, [K], summing to 1; equal parts where nothing was learned yet."""
        total = self.counts.sum()
        return self.counts / total if total > 0 else torch.full_like(self.counts, 1 / len(self.counts))

    def perplexity(self) -> float:
        """Perplexity, 1 to K: exp of the entropy of `usage`, in float64."""
        usage = self.usage().double()
        return float(torch.special.entr(usage).sum().exp())

    def draw(self, side: int, *, draws: Draws) -> Tensor:
        """Codes drawn one by one by how often they are used, whatever their neighbours are, [B, C, side, side]."""
        reach = self.usage().double().cumsum(0)
        numbers = torch.searchsorted(reach, draws.uniform(side, side).double() * reach[-1], right=True)
        return self.look_up(numbers.clamp_max(len(self.codes) - 1))

    def _nearest(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the nearest code and its squared distance, [N, C] -> [N], [N]."""
        places = self.places.detach()
        with torch.autocast(vectors.device.type, enabled=False):  # bfloat16 would confuse neighbours
            products = vectors @ places.T
        nearest, numbers = (places.square().sum(1) - 2 * products).min(dim=1)
        return numbers, nearest + vectors.square().sum(1)


def _vectors(latents: Tensor) -> Tensor:
    return latents.detach().float().movedim(1, -1).flatten(0, -2)  # [B, C, h, w] -> [B h w, C]
