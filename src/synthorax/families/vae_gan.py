"""Autoencoders whose films must convince a critic: VAE-GAN (Larsen et al. 2016) and alpha-GAN (Rosca et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.config import Depth, NotNegative, Part, Width
from synthorax.errors import UsageError
from synthorax.families.critics import CodeCritic, FilmCritic
from synthorax.families.vae import admit_mixture, encoder_alone, prior_given, withheld
from synthorax.families.vae_model import VaeConfig, VaeModel
from synthorax.losses.likelihood import expected_film
from synthorax.losses.reconstruction import squared_error
from synthorax.protocols import Batch, Condition, Family, Objective, Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeGanObjectiveConfig:
    """Weights of the losses."""

    beta: NotNegative = 1.0
    """weight of the divergence of codes from their prior, in nats a film"""
    features: NotNegative = 4.0
    """weight of the squared error of the critic's features, summed over them"""
    pixels: NotNegative = 2.0
    """weight of the squared error summed over pixels; the paper has 0, and without any a patch critic lets grey levels drift"""
    adversarial: NotNegative = 100.0
    """weight of the critic's verdict on reconstructions and on films of the prior's codes"""
    codes: NotNegative = 0.0
    """weight of a critic of codes, which with `beta` 0 takes the place of the divergence (alpha-GAN); 0 for none"""
    codes_width: Width = 256
    """numbers in each of the two hidden layers of the critic of codes"""
    critic_channels: Width = 32
    """feature maps of the critic's first layer"""
    critic_layers: Depth = 3
    """halvings in the critic; its features are what it scores"""
    part_dropout: Part = 0.15
    """probability of withholding each part of the condition as a whole"""
    statement_dropout: Part = 0.2
    """probability of withholding each single label, attribute and mask class"""


class VaeGanObjective(Objective):
    """Algorithm 1 of Larsen et al. 2016: the divergence and the features teach the encoder, the features and the critic the decoder.

    With `codes`, a second critic teaches the encoder to code films as the prior does: Algorithm 1 of Rosca et al. 2017 where `beta` and
    `features` are 0, with squared errors of pixels in place of absolute ones.

    The critic never reaches the encoder, and judges reconstructions and films of the prior's codes alike. Its loss is the hinge. In all of
    its parts it is shown films as they are made, within [-1, 1]: a decoder that is judged on greys beyond, which the critic is not taught,
    is paid for going there.
    """

    def __init__(self, model: nn.Module, config: VaeGanObjectiveConfig) -> None:
        super().__init__()
        assert isinstance(model, VaeModel)
        encoder_alone(model, family="vae-gan")
        if model.config.likelihood != "mse":
            raise UsageError(f"model.likelihood={model.config.likelihood}: the family vae-gan has the likelihood of a critic's features; "
                             "take mse, which says that the decoder puts out the film itself")
        if model.config.prior == "geometric":
            raise UsageError("model.prior=geometric belongs to the family vae: vae-gan samples in every step of its training")
        self.config, self.model = config, model
        self.critic = FilmCritic(channels=config.critic_channels, layers=config.critic_layers)
        self.coder: CodeCritic | None = None
        self.players = nn.ModuleDict({"model": model, "critic": self.critic})
        critics: tuple[str, ...] = ("critic",)
        if config.codes:
            prior_given(model)
            self.players["code_critic"] = self.coder = CodeCritic(model.config.latent_size, width=config.codes_width)
            critics = ("critic", "code_critic")
        self.phases = (Phase(name="autoencode", updates=("model",), betas=(0.5, 0.999)),
                       Phase(name="discriminate", updates=critics, betas=(0.5, 0.999)))

    def admit(self, *, num_films: int) -> None:
        """See `vae.admit_mixture`."""
        admit_mixture(self.model, num_films=num_films)

    def silence(self, varied: Condition) -> None:
        """See `VaeModel.silence`."""
        assert isinstance(self.model, VaeModel)
        self.model.silence(varied)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        model, critic, coder, config = self.model, self.critic, self.coder, self.config
        assert isinstance(model, VaeModel)
        told = withheld(batch.condition, batch.draws, part=config.part_dropout, statement=config.statement_dropout)
        learning = phase == "autoencode" and torch.is_grad_enabled()
        with torch.set_grad_enabled(learning):
            raw = model.posterior(batch.images, told)
            code = model.prior.draw(raw, batch.draws)
            invented = model.prior.sample(batch.draws)
            rebuilt, free = (model.decode(z, told) for z in (code.detach(), invented))  # detached: nothing reaches the encoder
        if phase == "discriminate":
            lesson = critic.lesson(batch.images, [rebuilt, free])
            if coder is not None:
                lesson |= coder.lesson(model.prior.heard(invented), model.prior.heard(code))
            return lesson
        again = model.explain(code, told)
        terms = {"pixels": config.pixels * squared_error(again, batch.images),
                 "adversarial": config.adversarial * critic.verdict([rebuilt, free])}
        if config.features:
            with torch.no_grad():
                wanted = critic.features(batch.images)
            seen = critic.features(expected_film(again, likelihood="mse"))
            terms["features"] = config.features * squared_error(seen, wanted)
        if config.beta:
            terms["divergence"] = config.beta * model.prior.divergence(raw, code).sum(1)
        if coder is not None:
            terms["codes"] = config.codes * coder.verdict(model.prior.heard(code))
        return terms


FAMILY = Family(model_config=VaeConfig, objective_config=VaeGanObjectiveConfig, build_model=VaeModel, build_objective=VaeGanObjective,
                conditions=lambda config: tuple(config.parts))
