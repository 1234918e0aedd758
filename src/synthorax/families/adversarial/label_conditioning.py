"""Labels and attributes as adversarial families are conditioned on them: one row of statements an image, NaN where nothing is stated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from synthorax.nets.embedding import StatementEmbedding
from synthorax.protocols import ATTRIBUTES, Condition, ModelSpec

CONDITION_PARTS = ("attributes", "labels")


def num_statements(spec: ModelSpec) -> int:
    """Columns of `statements` for a model of this spec."""
    return len(spec.findings) + len(ATTRIBUTES) + len(spec.sites)


def statements(condition: Condition | None, spec: ModelSpec, *, size: int, device: torch.device) -> Tensor:
    """Labels, then attributes, [B, K + A] in [0, 1] or NaN; None states nothing."""
    if condition is None:
        condition = Condition.unstated(size, num_labels=len(spec.findings), num_sites=len(spec.sites))
    return torch.cat([condition.labels, condition.attributes], dim=1).to(device)


def statement_names(spec: ModelSpec) -> list[str]:
    """What the columns of a `StatementEmbedding` for `statements` mean: stated of each name, then value of each."""
    return twice([*(f"finding {name}" for name in spec.findings), *ATTRIBUTES, *(f"site {name}" for name in spec.sites)])


def twice(names: Sequence[str]) -> list[str]:
    """Names of inputs of which each has two: whether it is stated, and its value."""
    return [f"{half} {name}" for half in ("stated", "value") for name in names]


def varied_statements(varied: Condition) -> Tensor:
    """Statements in which training images do not differ, [K + A] of bool, from the argument of `Objective.zero_unvaried_inputs`."""
    return torch.cat([varied.labels, varied.attributes], dim=1)[0].isnan()


class DiscriminatorHead(nn.Module):
    """Scores of features, [B, F] -> [B, 1], given a condition if there is a projection, and logits of what an image shows.

    projection: linear(f) + <f, e(c)>, where e sums one vector for each statement, exactly 0 for what is not stated
    (Eq. 3, Miyato and Koyama 2018, for many labels at once). auxiliary: guesses of every statement (Odena et al. 2017).
    """

    def __init__(self, *, features: int, statements: int, conditioning: str, spectral: bool,
                 linear: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        score = linear(features, 1)
        self.score = spectral_norm(score) if spectral else score
        self.scale = features**-0.5
        self.projection = StatementEmbedding(statements, features) if conditioning == "projection" else None
        if self.projection is not None and spectral:
            spectral_norm(self.projection.linear)
        self.label_head = linear(features, statements) if conditioning == "auxiliary" else None

    def forward(self, features: Tensor, stated: Tensor) -> Tensor:
        score: Tensor = self.score(features)
        if self.projection is None:
            return score
        judged: Tensor = score + self.scale * (features * self.projection(stated)).sum(1, keepdim=True)
        return judged

    def zero_unvaried_inputs(self, which: Tensor) -> None:
        """Set to 0 the weights of some statements, [K + A] of bool; see `HasConditionInputs`."""
        if self.projection is not None:
            if nn.utils.parametrize.is_parametrized(self.projection.linear):
                original = cast(Tensor, self.projection.linear.parametrizations.weight.original)  # type: ignore[union-attr]
                with torch.no_grad():
                    original[:, which.repeat(2)] = 0.0
            else:
                self.projection.zero_unvaried_inputs(which)


def statement_loss(label_logits: Tensor, stated: Tensor) -> Tensor:
    """Cross-entropy of guessed statements, mean over what is stated, 0 where nothing is; logits and [0, 1] or NaN, [B, K] -> [B]."""
    known = ~stated.isnan()
    loss = F.binary_cross_entropy_with_logits(label_logits, stated.nan_to_num(0.5).clamp(0, 1), reduction="none")
    return (loss * known).sum(1) / known.sum(1).clamp(min=1)
