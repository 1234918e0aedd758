"""The soft-introspective autoencoder: encoder and decoder play against each other, with no discriminator beside them (Daniel and Tamar
2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, HasDiagnostics
from synthorax.config import Fraction, NotNegative
from synthorax.errors import UsageError
from synthorax.families.autoencoders.vae import condition_dropout, encoder_alone
from synthorax.families.autoencoders.vae_model import VaeConfig, VaeModel
from synthorax.losses.likelihood import squared_error
from synthorax.protocols import Batch, Family, Objective, Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftIntroVaeObjectiveConfig:
    """Weights of both players' bounds."""

    reconstruction: NotNegative = 1.0
    """weight of the squared error summed over pixels"""
    beta: NotNegative = 0.5
    """weight of the divergence of real images, and for the decoder of generated ones"""
    beta_made: NotNegative = 256.0
    """weight of the divergence of generated images where the encoder rejects them; the larger, the smaller the divergence that suffices"""
    alpha: NotNegative = 2.0
    """how steeply the encoder's reward for rejecting generated images falls: exp(alpha bound)"""
    gamma: NotNegative = 0.0
    """weight for the decoder of reconstructing generated images; the paper's 1e-8 is next to nothing and costs two more passes"""
    part_dropout: Fraction = 0.15
    """probability of dropping each part of the condition as a whole"""
    statement_dropout: Fraction = 0.2
    """probability of dropping each single label, attribute and mask class"""


class SoftIntroVaeObjective(Objective[VaeModel]):
    """Two players, two bounds (Daniel and Tamar 2021), with r a reconstruction D(z), z from q(z | x), and f an image of the prior.

    The encoder maximises  ELBO(x) - 1 / (2 alpha) sum_(s in r, f) exp(alpha ELBO(x_s)): generated images are to be unlikely, and how
    unlikely stops mattering. The decoder maximises  ELBO(x) - beta / 2 sum_s KL(q(z | x_s) || p) - gamma / 2 sum_s |x_s - D(z_s)|^2:
    generated images are to be encoded like real ones. All terms are divided by the number of pixels,
    ELBO(x) = -(reconstruction |x - D(z)|^2 + beta KL) / pixels, with `beta_made` in place of `beta` under the exponential. The embeddings
    of the condition are learned with the encoder.
    """

    phases = (Phase(name="encode", updates=("encoder",), betas=(0.9, 0.999)),
              Phase(name="decode", updates=("decoder",), betas=(0.9, 0.999)))

    def __init__(self, model: VaeModel, config: SoftIntroVaeObjectiveConfig) -> None:
        super().__init__()
        encoder_alone(model, family="soft-intro-vae")
        if model.config.likelihood != "mse":
            raise UsageError(f"model.likelihood={model.config.likelihood}: the bounds of the family soft-intro-vae are made of squared "
                             "errors; take mse")
        if model.config.prior != "normal":
            raise UsageError(f"model.prior={model.config.prior}: the family soft-intro-vae needs a prior that is given, normal")
        if config.alpha <= 0:
            raise UsageError("objective.alpha=0: the encoder then gains nothing by telling generated images apart; the paper has 2")
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"encoder": nn.ModuleList([model.encoder, model.embeddings]), "decoder": model.decoder})

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model, config, draws = self.model, self.config, batch.draws
        condition = condition_dropout(batch.condition, draws, part=config.part_dropout, statement=config.statement_dropout)
        per_pixel, encoding = 1 / batch.images[0].numel(), phase == "encode"
        with torch.set_grad_enabled(encoding and torch.is_grad_enabled()):
            raw = model.posterior(batch.images, condition)
            latent = model.prior.draw(raw, draws)
        rebuilt = model.explain(latent, condition)
        with torch.set_grad_enabled(not encoding and torch.is_grad_enabled()):
            invented = model.explain(model.prior.sample(draws), condition)
        terms = {"reconstruction": per_pixel * config.reconstruction * squared_error(rebuilt, batch.images)}
        if encoding:
            terms["divergence"] = per_pixel * config.beta * model.prior.divergence(raw, latent).sum(1)
        judged = []
        for images in (rebuilt.detach() if encoding else rebuilt, invented):
            raw_made = model.posterior(images, condition)
            divergence = model.prior.divergence(raw_made, latent).sum(1)
            error = torch.zeros_like(divergence)
            if encoding or config.gamma:
                latent_made = model.prior.draw(raw_made, draws)
                again = model.explain(latent_made if encoding else latent_made.detach(), condition)
                error = squared_error(again, images.detach())
            judged.append((error, divergence))
        if encoding:
            bounds = [-per_pixel * (config.reconstruction * error + config.beta_made * divergence) for error, divergence in judged]
            return {**terms, "pushed_off": (config.alpha * torch.stack(bounds)).exp().mean(0) / config.alpha}
        costs = [config.gamma * config.reconstruction * error + config.beta * divergence for error, divergence in judged]
        return {**terms, "accepted": per_pixel * torch.stack(costs).mean(0)}


FAMILY = Family(model_config=VaeConfig, objective_config=SoftIntroVaeObjectiveConfig, build_model=VaeModel,
                build_objective=SoftIntroVaeObjective, conditions=lambda config: tuple(config.parts),
                can=(HasConditionInputs, HasDiagnostics))
