"""The codes of films: numbers from which a generator makes them again, found by optimisation (Zhu et al. 2016, Abdal et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from synthorax.config import AtLeastOne, NotNegative
from synthorax.errors import UsageError
from synthorax.protocols import Condition, ModelSpec
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeSearchConfig:
    """How long codes are looked for, and how typical they must be."""

    candidates: AtLeastOne = 64
    """random codes from which the search of each film begins at the best"""
    steps: AtLeastOne = 500
    """steps of Adam"""
    learning_rate: NotNegative = 0.05
    """step size at the start; it falls to 0 along a cosine"""
    prior: NotNegative = 1e-5
    """pull of every number towards 0, beside the mean squared error of a pixel"""


class Generator(Protocol):
    """A model that makes films of normal numbers in a differentiable way, as adversarial families do."""

    spec: ModelSpec

    @property
    def code_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, for one film, of the numbers that make it."""

    def film_of(self, codes: Sequence[Tensor], condition: Condition | None) -> Tensor:
        """Codes, each [B, *size], -> films [B, 1, S, S]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundCodes:
    """Codes of films, what the generator makes of them, and how close that is."""

    codes: tuple[Tensor, ...]
    """each [B, *size]"""
    films: Tensor
    """[B, 1, S, S]"""
    psnr: Tensor
    """[B], in dB; higher is closer"""


def find_codes(model: Generator, films: Tensor, *, seeds: Sequence[int], condition: Condition | None = None,
               config: CodeSearchConfig | None = None) -> FoundCodes:
    """Codes from which `model` makes `films` [B, 1, S, S] in [-1, 1] as well as it can; each film has a seed and a search of its own.

    The model must be in evaluation mode; its weights stay as they are. `condition` is what is known of the films.
    """
    config = config or CodeSearchConfig()
    if not isinstance(model, nn.Module) or not hasattr(model, "film_of") or not hasattr(model, "code_sizes"):
        raise UsageError(f"a model of family '{model.spec.family}' makes no films of codes; choose an adversarial family")
    side = model.spec.image_size
    if films.shape != (len(seeds), 1, side, side):
        raise UsageError(f"{len(seeds)} seeds and a model of {side} px need films of shape {(len(seeds), 1, side, side)}, "
                         f"not {tuple(films.shape)}")
    if model.training:
        raise UsageError("the model is in training mode, where a film may depend on others; call model.eval() first")
    codes = [code.requires_grad_() for code in _best_of(model, films, seeds=seeds, condition=condition, config=config)]
    optimizer = torch.optim.Adam(codes, lr=config.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    with torch.enable_grad():
        for _ in range(config.steps):
            error = (model.film_of(codes, condition) - films).square().flatten(1).mean(1)
            atypical = torch.stack([code.square().flatten(1).mean(1) for code in codes]).sum(0)
            total = (error + config.prior * atypical).sum()  # a sum: no film slows another one down
            for code, gradient in zip(codes, torch.autograd.grad(total, codes, materialize_grads=True), strict=True):
                code.grad = gradient
            optimizer.step()
            cosine.step()
    with torch.inference_mode():
        made = model.film_of(codes, condition)
        error = (made - films).square().flatten(1).mean(1)
    return FoundCodes(codes=tuple(code.detach() for code in codes), films=made, psnr=10 * torch.log10(4 / error))  # the range is 2


@torch.no_grad()
def _best_of(model: Generator, films: Tensor, *, seeds: Sequence[int], condition: Condition | None,
             config: CodeSearchConfig) -> list[Tensor]:
    """The best of some random codes for each film."""
    draws = Draws(seeds, device=films.device)
    best: list[Tensor] = []
    lowest = torch.full((len(films),), torch.inf, device=films.device)
    for _ in range(config.candidates):
        codes = [draws.normal(*size) for size in model.code_sizes]
        error = (model.film_of(codes, condition) - films).square().flatten(1).mean(1)
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        best = [torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(codes, best or codes, strict=True)]
    return best
