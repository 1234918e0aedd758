"""Multi-label conditional diffusion with EDM preconditioning (Karras et al. 2022) and a U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.diffusion.guidance import classifier_free
from synthorax.diffusion.noise import karras_sigmas, lognormal_sigmas
from synthorax.diffusion.precondition import edm_scalings, edm_weight
from synthorax.diffusion.samplers import SAMPLERS
from synthorax.errors import UsageError
from synthorax.nets.embedding import StatementEmbedding
from synthorax.nets.unet import UNet, UNetConfig, smallest_multiple
from synthorax.protocols import ATTRIBUTES, Batch, Condition, Family, ModelSpec, Objective, Phase, SampleSettings
from synthorax.registry import lookup
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class EdmConfig:
    """Shape of the denoiser and range of its noise levels."""

    image_size: int = 64
    """side of the square films in pixels"""
    channels: int = 32
    """feature maps at the highest resolution"""
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    """feature maps of each level, in units of `channels`"""
    blocks: int = 1
    """residual blocks a level"""
    attention: tuple[bool, ...] = (False, False, True, True)
    """whether each level has self-attention"""
    patch: int = 2
    """pixels of a side folded into channels"""
    dropout: float = 0.0
    """probability of dropping a feature in training; above 0, several processes no longer train exactly like one"""
    embedding: int = 256
    """width of the noise and condition embedding"""
    sigma_data: float = 0.5
    """standard deviation of the films' pixels in [-1, 1]"""
    sigma_min: float = 0.005
    """lowest noise level of sampling; half of an 8-bit grey level is 0.004"""
    sigma_max: float = 80.0
    """highest noise level of sampling"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EdmObjectiveConfig:
    """Which noise levels are trained, and how often parts of the condition are withheld."""

    sigma_mean: float = -0.8
    """mean of ln sigma in training; higher than Karras's -1.2 because films of one body part share so much at low noise"""
    sigma_std: float = 1.4
    """standard deviation of ln sigma in training"""
    part_dropout: float = 0.15
    """probability of withholding all labels, and independently all attributes: what classifier-free guidance needs"""
    statement_dropout: float = 0.2
    """probability of withholding each single label or attribute, so that a partial condition is nothing new"""


class EdmModel(nn.Module):
    """A denoiser D(x; sigma, condition) and the samplers that turn it into films."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, EdmConfig(**spec.config)
        c = self.config
        if len(c.multipliers) != len(c.attention):
            raise UsageError("model.multipliers and model.attention must have the same length")
        unet = UNetConfig(channels=c.channels, multipliers=tuple(c.multipliers), blocks=c.blocks, patch=c.patch,
                          attention=tuple(c.attention), dropout=c.dropout, embedding=c.embedding)
        if c.image_size % smallest_multiple(unet):
            raise UsageError(f"model.image_size {c.image_size} is not a multiple of {smallest_multiple(unet)}, "
                             f"which this U-Net needs")
        self.labels = StatementEmbedding(len(spec.findings), c.embedding)
        self.attributes = StatementEmbedding(len(ATTRIBUTES), c.embedding)
        self.network = UNet(unet)

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The expected clean films given noisy ones, x [B, 1, H, W], sigma [B] -> [B, 1, H, W] (Eq. 7, Karras et al. 2022)."""
        s = edm_scalings(sigma, sigma_data=self.config.sigma_data)
        embedded = self.labels(condition.labels) + self.attributes(condition.attributes)
        raw: Tensor = self.network(s.c_in * x, s.c_noise, embedded)
        return s.c_skip * x + s.c_out * raw.to(x)

    def adopt(self, base: nn.Module) -> None:
        """Start from the weights of `base`, a model of the same shape; findings are matched by name, new ones start fresh."""
        assert isinstance(base, EdmModel)
        weights = base.state_dict()
        known, own = base.spec.findings, self.state_dict()["labels.linear.weight"]
        for column, name in enumerate(self.spec.findings):
            if name in known:  # columns are [stated of each finding, value of each finding]
                for half in range(2):
                    source = known.index(name) + half * len(known)
                    own[:, column + half * len(self.spec.findings)] = weights["labels.linear.weight"][:, source]
        weights["labels.linear.weight"] = own
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            raise UsageError(f"the base model has another shape ({str(error).splitlines()[1].strip()})") from error

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One film a seed, [B, 1, H, W] in [-1, 1]; the initial noise depends on the seed alone.

        `condition` has one row a seed; None asks for nothing in particular. See `SampleSettings` for sampler, steps and guidance.
        """
        settings = settings or SampleSettings()
        device = next(self.parameters()).device
        c = self.config
        if condition is None:
            condition = Condition.unstated(len(seeds), num_labels=len(self.spec.findings))
            settings = SampleSettings(sampler=settings.sampler, steps=settings.steps, guidance=1.0)
        condition = condition.to(device)
        sampler = lookup(SAMPLERS, settings.sampler, kind="sampler")
        sigmas = karras_sigmas(settings.steps, sigma_min=c.sigma_min, sigma_max=c.sigma_max)
        noise = Draws(seeds, device=device).normal(1, c.image_size, c.image_size) * sigmas[0].item()
        denoise = classifier_free(self.denoise, condition, weight=settings.guidance)
        with torch.inference_mode():
            films: Tensor = sampler(denoise, noise, sigmas)
        return films.clamp(-1, 1)


class EdmObjective(Objective):
    """Weighted denoising error over log-normal noise levels (Eq. 8 and Table 1, Karras et al. 2022)."""

    phases = (Phase(name="denoise", updates=("model",)),)

    def __init__(self, model: nn.Module, config: EdmObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.players = nn.ModuleDict({"model": model})
        self.model = model

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        model, config = self.model, self.config
        assert isinstance(model, EdmModel)
        sigma = lognormal_sigmas(batch.draws.normal(), mean=config.sigma_mean, std=config.sigma_std)
        noise = batch.draws.normal(*batch.images.shape[1:]) * sigma[:, None, None, None]
        condition = Condition(labels=self._withhold(batch.condition.labels, batch.draws),
                              attributes=self._withhold(batch.condition.attributes, batch.draws))
        error = F.mse_loss(model.denoise(batch.images + noise, sigma, condition), batch.images, reduction="none")
        weight = edm_weight(sigma, sigma_data=model.config.sigma_data)
        return {"denoise": weight * error.flatten(1).mean(1)}

    def _withhold(self, statements: Tensor, draws: Draws) -> Tensor:
        """Replace statements [B, K] by NaN: a whole row with `part_dropout`, each one with `statement_dropout`."""
        whole = draws.uniform(1) < self.config.part_dropout
        single = draws.uniform(statements.shape[1]) < self.config.statement_dropout
        return statements.masked_fill(whole | single, float("nan"))


FAMILY = Family(model_config=EdmConfig, objective_config=EdmObjectiveConfig, build_model=EdmModel,
                build_objective=EdmObjective, conditions=("labels", "attributes"))
