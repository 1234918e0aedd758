"""The codes of films: numbers from which a generator makes them again, found by optimisation (Zhu et al. 2016, Abdal et al. 2019).

The search begins where an encoder says, if the model has one (Sec. 3.3, Zhu et al. 2016), or else at the best of some random codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from synthorax.config import AtLeastOne, NotNegative, WholeNotNegative
from synthorax.errors import UsageError
from synthorax.protocols import Condition, ModelSpec
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeSearchConfig:
    """How long codes are looked for, and how typical they must be."""

    candidates: AtLeastOne = 64
    """random codes from which the search of each film begins at the best"""
    steps: WholeNotNegative = 500
    """steps of Adam; 0 leaves the codes where the search would begin"""
    learning_rate: NotNegative = 0.05
    """step size at the start; it falls to 0 along a cosine"""
    prior: NotNegative = 1e-5
    """pull of every number towards 0, beside the mean squared error of a pixel"""


class Generator(Protocol):
    """A model that makes films of about normal numbers in a differentiable way, as adversarial families do, or its space of styles."""

    spec: ModelSpec
    training: bool

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


def editable(model: Any) -> Generator:
    """The space in which films of a model are found and moved best: that of its styles where it has some, or else that of its codes.

    Raises UsageError for a model that makes no films of codes.
    """
    check_has_codes(model)
    return cast(Generator, model.style_space() if hasattr(model, "style_space") else model)


def check_has_codes(model: Any) -> None:
    """Refuse with a UsageError a model that makes no films of codes."""
    if not hasattr(model, "film_of") or not hasattr(model, "code_sizes"):
        raise UsageError(f"a model of family '{model.spec.family}' makes no films of codes; choose an adversarial family")


def find_codes(model: Generator, films: Tensor, *, seeds: Sequence[int], condition: Condition | None = None,
               start: Sequence[Tensor] | None = None, config: CodeSearchConfig | None = None) -> FoundCodes:
    """Codes from which `model` makes `films` [B, 1, S, S] in [-1, 1] as well as it can; each film has a seed and a search of its own.

    The model must be in evaluation mode; its weights stay as they are. `condition` is what is known of the films. `start` are codes to
    begin with, each [B, *size]; without any, a model with an encoder begins with what that reads from the films.
    """
    config = config or CodeSearchConfig()
    check_films(model, films)
    if len(seeds) != len(films):
        raise UsageError(f"films of shape {tuple(films.shape)} need as many seeds as they are, not {len(seeds)}")
    if start is None:
        begun = model.codes_of(films) if hasattr(model, "codes_of") else \
            _best_of(model, films, seeds=seeds, condition=condition, config=config)
    else:
        begun = check_codes(model, start, size=len(films))
    codes = [code.detach().clone().requires_grad_() for code in begun]
    optimizer = torch.optim.Adam(codes, lr=config.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.steps, 1))
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


def check_films(model: Generator, films: Tensor) -> None:
    """Refuse with a UsageError a model without codes or in training mode, and films of another size than it makes."""
    check_has_codes(model)
    side = model.spec.image_size
    if films.shape[1:] != (1, side, side):
        raise UsageError(f"a model of {side} px needs films of shape {(len(films), 1, side, side)}, not {tuple(films.shape)}")
    if model.training:
        raise UsageError("the model is in training mode, where a film may depend on others; call model.eval() first")


def check_codes(model: Generator, codes: Sequence[Tensor], *, size: int) -> Sequence[Tensor]:
    """The codes, if they are such as this model makes `size` films of; otherwise UsageError."""
    wanted, given = [(size, *shape) for shape in model.code_sizes], [tuple(code.shape) for code in codes]
    if wanted != given:
        raise UsageError(f"codes of shapes {given} are not those of {size} films of this model, {wanted}; codes belong to the space in "
                         "which they were found: editable(model) or the model itself")
    return codes


def random_codes(model: Generator, draws: Draws, condition: Condition | None = None) -> list[Tensor]:
    """Codes of random films, one a stream of `draws`, each [B, *size]."""
    if hasattr(model, "draw"):
        drawn: list[Tensor] = model.draw(draws, condition)
        return drawn
    return [draws.normal(*size) for size in model.code_sizes]


@torch.no_grad()
def _best_of(model: Generator, films: Tensor, *, seeds: Sequence[int], condition: Condition | None,
             config: CodeSearchConfig) -> list[Tensor]:
    """The best of some random codes for each film."""
    draws = Draws(seeds, device=films.device)
    best: list[Tensor] = []
    lowest = torch.full((len(films),), torch.inf, device=films.device)
    for _ in range(config.candidates):
        codes = random_codes(model, draws, condition)
        error = (model.film_of(codes, condition) - films).square().flatten(1).mean(1)
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        best = [torch.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(codes, best or codes, strict=True)]
    return best
