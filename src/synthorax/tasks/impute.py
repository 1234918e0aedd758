"""Missing regions of films filled in by an autoencoder, which reads and rebuilds a film until what it adds fits what is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from synthorax.errors import UsageError
from synthorax.protocols import Condition
from synthorax.rng import Draws

ROUNDS = 20


class Rebuilder(Protocol):
    """An autoencoder whose code is drawn by chance."""

    def rebuild(self, films: Tensor, condition: Condition | None, draws: Draws) -> Tensor:
        """Films through a code and back, [B, 1, S, S] in [-1, 1] -> the same."""


def impute(model: Rebuilder, films: Tensor, known: Tensor, seeds: Sequence[int], *, condition: Condition | None = None,
           rounds: int = ROUNDS) -> Tensor:
    """Films with their missing pixels filled in, [B, 1, S, S] in [-1, 1]; known pixels stay as they are, to the bit.

    `known` [B, 1, S, S] of bool says where a film is to be trusted; elsewhere it may hold anything, also NaN. Each round draws a code
    for the film as it is and puts its film where nothing is known: a Markov chain that ends at the model's own view of what is
    missing (Sec. 5.3 and Appendix F, Rezende et al. 2014). Other seeds give other answers; each film depends on its own seed.
    """
    if films.shape != known.shape or known.dtype != torch.bool:
        raise UsageError(f"known must say yes or no for every pixel of {list(films.shape)}, not be {known.dtype} of {list(known.shape)}")
    if len(seeds) != len(films) or rounds < 1:
        raise UsageError(f"imputing {len(films)} films needs as many seeds, and at least one round, not {len(seeds)} and {rounds}")
    if not bool(films[known].isfinite().all()):
        raise UsageError("known pixels are NaN or infinite: mark them as not known")
    draws = Draws(seeds, device=films.device)
    with torch.inference_mode():
        guess = torch.where(known, films, _mean_of_known(films, known))
        for _ in range(rounds):
            guess = torch.where(known, films, model.rebuild(guess, condition, draws).to(films))
    return guess


def _mean_of_known(films: Tensor, known: Tensor) -> Tensor:
    """The grey to begin with, [B, 1, 1, 1]: the mean of what is known of a film, 0 where nothing is."""
    total = films.where(known, 0.0).flatten(1).sum(1)
    return (total / known.flatten(1).sum(1).clamp_min(1))[:, None, None, None]
