"""What trains a variational autoencoder: the evidence lower bound, with a weight, free bits, and parts of the condition withheld."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from synthorax.config import NotNegative, Part, WholeNotNegative
from synthorax.errors import UsageError
from synthorax.families.geometric import Geometric
from synthorax.families.vae_model import HEARD, VaeConfig, VaeModel
from synthorax.losses.divergence import free_bits
from synthorax.losses.likelihood import surprise
from synthorax.protocols import Batch, Condition, Family, Objective, Phase
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeObjectiveConfig:
    """Weights of the bound."""

    beta: NotNegative = 1.0
    """weight of the divergence; 1 is the evidence lower bound, more asks for codes that are simpler (Higgins et al. 2017)"""
    beta_warmup: WholeNotNegative = 0
    """steps over which the weight rises from 0 (Bowman et al. 2016)"""
    free_bits: NotNegative = 0.0
    """nats of each number of the code that cost the same used or not, so that it pays to use them; of the whole code where its numbers
    hang together (mixture, dirichlet, hamiltonian)"""
    sigma: NotNegative = 0.1
    """deviation of the likelihood gaussian, in a film's range [-1, 1]"""
    part_dropout: Part = 0.15
    """probability of withholding each part of the condition as a whole"""
    statement_dropout: Part = 0.2
    """probability of withholding each single label, attribute and mask class"""


class VaeObjective(Objective):
    """Minus the evidence lower bound, in nats a film (Eq. 10, Kingma and Welling 2014).

    With the posterior hamiltonian, minus log p(x, z_K) - |rho_K|^2 / 2 - log q(z_0 | x) + |gamma_0|^2 / 2 (Caterini et al. 2018).
    """

    steps: Tensor

    def __init__(self, model: nn.Module, config: VaeObjectiveConfig) -> None:
        super().__init__()
        assert isinstance(model, VaeModel)
        if model.config.likelihood == "gaussian" and config.sigma <= 0:
            raise UsageError(f"objective.sigma={config.sigma}: the likelihood gaussian needs a deviation above 0")
        if model.flow is not None:
            model.flow.sigma.fill_(config.sigma)
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"model": model, **({"clock": Clock()} if config.beta_warmup else {})})
        self.phases = (Phase(name="elbo", updates=("model",), betas=(0.9, 0.999)),)

    def admit(self, *, num_films: int) -> None:
        """Refuse more Gaussians than films."""
        admit_mixture(self.model, num_films=num_films)

    def silence(self, varied: Condition) -> None:
        """See `VaeModel.silence`."""
        assert isinstance(self.model, VaeModel)
        self.model.silence(varied)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        model, config = self.model, self.config
        assert isinstance(model, VaeModel)
        told = withheld(batch.condition, batch.draws, part=config.part_dropout, statement=config.statement_dropout)
        raw = model.posterior(batch.images, told)
        if self.training and isinstance(model.prior, Geometric):
            model.prior.remember(raw)
        code, cost = model.coded(batch.images, told, raw, batch.draws)
        divergence = free_bits(cost, nats=config.free_bits * self._grouped, over_batch=self.training)
        return {"reconstruction": surprise(model.explain(code, told), batch.images, likelihood=model.config.likelihood, sigma=config.sigma),
                "divergence": self._beta() * divergence}

    @property
    def _grouped(self) -> int:
        """Numbers of the code whose divergence is only known together."""
        assert isinstance(self.model, VaeModel)
        together = self.model.config.prior in ("mixture", "dirichlet") or self.model.flow is not None
        return self.model.config.latent_size if together else 1

    def _beta(self) -> float:
        if "clock" not in self.players:
            return self.config.beta
        clock = self.players["clock"]
        assert isinstance(clock, Clock)
        if self.training:
            clock.steps += 1
        return self.config.beta * min(1.0, int(clock.steps) / self.config.beta_warmup)


class Clock(nn.Module):
    """Counts the steps of a warm-up; saved with the players, so that a continued run goes on counting."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))


def admit_mixture(model: nn.Module, *, num_films: int) -> None:
    """UsageError where the prior of an autoencoder has more Gaussians than there are films."""
    assert isinstance(model, VaeModel)
    if model.config.prior == "mixture" and model.config.components > num_films:
        raise UsageError(f"model.components={model.config.components} is more than the {num_films} films to learn from")


def encoder_alone(model: nn.Module, *, family: str) -> None:
    """UsageError where a family that draws codes from the encoder is asked for another posterior."""
    assert isinstance(model, VaeModel)
    if model.flow is not None:
        raise UsageError(f"model.posterior={model.config.posterior} belongs to the family vae: {family} draws codes from the encoder alone")


def withheld(condition: Condition, draws: Draws, *, part: float, statement: float) -> Condition:
    """The condition with whole parts and single statements taken out at random; what an autoencoder does not hear is left as it is."""
    changed: dict[str, Any] = {}
    for name in HEARD:
        value = getattr(condition, name)
        if value is None:
            continue
        gone = (draws.uniform(value.shape[1]) < statement) | (draws.uniform(1) < part)  # [B, statements]
        changed[name] = value.masked_fill(gone[..., None, None] if name == "mask" else gone, math.nan)
    return replace(condition, **changed)


FAMILY = Family(model_config=VaeConfig, objective_config=VaeObjectiveConfig, build_model=VaeModel, build_objective=VaeObjective,
                conditions=lambda config: tuple(config.parts))
