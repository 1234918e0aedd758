"""The adversarial autoencoder: a critic on codes takes the place of the divergence (Makhzani et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.config import NotNegative, Part, Width
from synthorax.errors import UsageError
from synthorax.families.critics import CodeCritic
from synthorax.families.vae import admit_mixture, encoder_alone, prior_given, withheld
from synthorax.families.vae_model import VaeConfig, VaeModel
from synthorax.losses.likelihood import surprise
from synthorax.protocols import Batch, Condition, Family, Objective, Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class AaeObjectiveConfig:
    """Weights of reconstruction and critic."""

    adversarial: NotNegative = 100.0
    """weight of the critic on codes beside the reconstruction in nats a film"""
    critic_width: Width = 256
    """numbers in each of the critic's two hidden layers"""
    sigma: NotNegative = 0.1
    """deviation of the likelihood gaussian, in a film's range [-1, 1]"""
    part_dropout: Part = 0.15
    """probability of withholding each part of the condition as a whole"""
    statement_dropout: Part = 0.2
    """probability of withholding each single label, attribute and mask class"""


class AaeObjective(Objective):
    """Reconstruction, codes that the critic takes for the prior's, and the critic.

    The encoder is a Gaussian, or what the prior asks for, and not a point: the paper's second choice (Sec. 2).
    """

    phases = (Phase(name="autoencode", updates=("model",), betas=(0.5, 0.999)),
              Phase(name="discriminate", updates=("critic",), betas=(0.5, 0.999)))

    def __init__(self, model: nn.Module, config: AaeObjectiveConfig) -> None:
        super().__init__()
        assert isinstance(model, VaeModel)
        encoder_alone(model, family="aae")
        prior_given(model)
        if model.config.likelihood == "gaussian" and config.sigma <= 0:
            raise UsageError(f"objective.sigma={config.sigma}: the likelihood gaussian needs a deviation above 0")
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"model": model, "critic": CodeCritic(model.config.latent_size, width=config.critic_width)})

    def admit(self, *, num_films: int) -> None:
        """See `vae.admit_mixture`."""
        admit_mixture(self.model, num_films=num_films)

    def silence(self, varied: Condition) -> None:
        """See `VaeModel.silence`."""
        assert isinstance(self.model, VaeModel)
        self.model.silence(varied)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        model, critic, config = self.model, self.players["critic"], self.config
        assert isinstance(model, VaeModel) and isinstance(critic, CodeCritic)
        told = withheld(batch.condition, batch.draws, part=config.part_dropout, statement=config.statement_dropout)
        with torch.set_grad_enabled(phase == "autoencode" and torch.is_grad_enabled()):
            code = model.prior.draw(model.posterior(batch.images, told), batch.draws)
        if phase == "discriminate":
            return critic.lesson(model.prior.heard(model.prior.sample(batch.draws)), model.prior.heard(code))
        return {"reconstruction": surprise(model.explain(code, told), batch.images, likelihood=model.config.likelihood, sigma=config.sigma),
                "adversarial": config.adversarial * critic.verdict(model.prior.heard(code))}


FAMILY = Family(model_config=VaeConfig, objective_config=AaeObjectiveConfig, build_model=VaeModel, build_objective=AaeObjective,
                conditions=lambda config: tuple(config.parts))
