"""A variational autoencoder whose films are compared by the features of a critic, and must convince it (Larsen et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.config import AtLeastOne, NotNegative, Part
from synthorax.errors import UsageError
from synthorax.families.vae import admit_mixture, encoder_alone, withheld
from synthorax.families.vae_model import VaeConfig, VaeModel
from synthorax.losses.hinge import hinge_made, hinge_maker, hinge_real
from synthorax.losses.likelihood import expected_film
from synthorax.losses.reconstruction import squared_error
from synthorax.nets.patchgan import PatchDiscriminator
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
    critic_channels: AtLeastOne = 32
    """feature maps of the critic's first layer"""
    critic_layers: AtLeastOne = 3
    """halvings in the critic; its features are what it scores"""
    part_dropout: Part = 0.15
    """probability of withholding each part of the condition as a whole"""
    statement_dropout: Part = 0.2
    """probability of withholding each single label, attribute and mask class"""


class VaeGanObjective(Objective):
    """Algorithm 1 of Larsen et al. 2016: the divergence and the features teach the encoder, the features and the critic the decoder.

    The critic never reaches the encoder, and judges reconstructions and films of the prior's codes alike. Its loss is the hinge. In all of
    its parts it is shown films as they are made, within [-1, 1]: a decoder that is judged on greys beyond, which the critic is not taught,
    is paid for going there.
    """

    phases = (Phase(name="autoencode", updates=("model",), betas=(0.5, 0.999)),
              Phase(name="discriminate", updates=("critic",), betas=(0.5, 0.999)))

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
        self.players = nn.ModuleDict({"model": model, "critic": PatchDiscriminator(channels=config.critic_channels,
                                                                                  layers=config.critic_layers)})

    def admit(self, *, num_films: int) -> None:
        """See `vae.admit_mixture`."""
        admit_mixture(self.model, num_films=num_films)

    def silence(self, varied: Condition) -> None:
        """See `VaeModel.silence`."""
        assert isinstance(self.model, VaeModel)
        self.model.silence(varied)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        model, critic, config = self.model, self.players["critic"], self.config
        assert isinstance(model, VaeModel) and isinstance(critic, PatchDiscriminator)
        told = withheld(batch.condition, batch.draws, part=config.part_dropout, statement=config.statement_dropout)
        learning = phase == "autoencode" and torch.is_grad_enabled()
        with torch.set_grad_enabled(learning):
            raw = model.posterior(batch.images, told)
            code = model.prior.draw(raw, batch.draws)
            invented = model.prior.sample(batch.draws)
            rebuilt, free = (model.decode(z, told) for z in (code.detach(), invented))  # detached: nothing reaches the encoder
        if phase == "discriminate":
            made = 0.5 * (hinge_made(critic(rebuilt).float()) + hinge_made(critic(free).float()))
            return {"real": hinge_real(critic(batch.images).float()), "made": made}
        again = model.explain(code, told)
        with torch.no_grad():
            wanted = _features(critic, batch.images)
        verdict = 0.5 * (hinge_maker(critic(rebuilt).float()) + hinge_maker(critic(free).float()))
        return {"features": config.features * squared_error(_features(critic, expected_film(again, likelihood="mse")), wanted),
                "pixels": config.pixels * squared_error(again, batch.images),
                "divergence": config.beta * model.prior.divergence(raw, code).sum(1), "adversarial": config.adversarial * verdict}


def _features(critic: PatchDiscriminator, films: Tensor) -> Tensor:
    """What the critic makes of films before it scores them, [B, 1, S, S] -> [B, C, h, w]."""
    features: Tensor = critic.layers[:-1](films)
    return features.float()


FAMILY = Family(model_config=VaeConfig, objective_config=VaeGanObjectiveConfig, build_model=VaeModel, build_objective=VaeGanObjective,
                conditions=lambda config: tuple(config.parts))
