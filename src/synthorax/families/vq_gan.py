"""A compressor of films into the words of a learned codebook (van den Oord et al. 2017), sharpened by a critic (Esser et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from synthorax.config import AtLeastOne, NotNegative, WholeNotNegative
from synthorax.families.first_stage import AUTOENCODE, DISCRIMINATE, Critic, Reconstruction
from synthorax.nets.autoencoder import AutoencoderConfig, Decoder, Encoder, checked
from synthorax.nets.quantizer import Quantizer
from synthorax.protocols import Batch, Condition, Family, ModelSpec, Objective, SampleSettings
from synthorax.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class VqGanConfig:
    """Shape of the compressor and of its codebook; films shrink by `patch` times 2 for each level after the first."""

    image_size: int = 256
    """side of the square films in pixels"""
    channels: AtLeastOne = 48
    """feature maps at the highest resolution"""
    multipliers: tuple[int, ...] = (1, 2)
    """feature maps of each level, in units of `channels`; each level after the first halves the resolution"""
    blocks: AtLeastOne = 1
    """residual blocks a level; the decoder has one more"""
    latent_channels: AtLeastOne = 4
    """maps of the latent code"""
    patch: AtLeastOne = 4
    """pixels of a side folded into channels before the first convolution"""
    attention: bool = False
    """self-attention at the lowest resolution"""
    codes: AtLeastOne = 1024
    """vectors in the codebook"""


@dataclass(frozen=True, kw_only=True, slots=True)
class VqGanObjectiveConfig:
    """Weights of the losses."""

    absolute: NotNegative = 1.0
    """weight of the absolute error of a pixel, in [-1, 1]"""
    squared: NotNegative = 0.0
    """weight of the squared error of a pixel"""
    perceptual: NotNegative = 1.0
    """weight of the perceptual distance"""
    features: str = "oriented"
    """what the perceptual distance looks at: a name in `losses.perceptual.PERCEPTUAL` or a TorchScript file"""
    commitment: NotNegative = 0.25
    """weight of the squared distance of the encoder's vectors from their codes"""
    adversarial: NotNegative = 0.5
    """pull of the critic beside that of the reconstruction; 0 trains without one"""
    adversarial_after: WholeNotNegative = 1000
    """steps before the critic is heard"""
    critic_channels: AtLeastOne = 32
    """feature maps of the critic's first layer"""
    critic_layers: AtLeastOne = 3
    """halvings in the critic; with 3 it judges patches of 70 x 70 pixels"""


class VqGanModel(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, VqGanConfig(**spec.config)
        fields = asdict(self.config)
        self.quantizer = Quantizer(num_codes=fields.pop("codes"), channels=self.config.latent_channels)
        shape = checked(AutoencoderConfig(**fields))
        self.channels, self.factor = shape.latent_channels, shape.factor
        self.encoder = Encoder(shape, outputs=self.channels)
        self.decoder = Decoder(shape)

    def encode(self, images: Tensor) -> Tensor:
        """The vectors of the chosen codes, [B, 1, S, S] in [-1, 1] -> [B, C, S / factor, S / factor] of any scale."""
        return self.quantizer.look_up(self.quantizer.indices(self.encoder(images).float()))

    def decode(self, latents: Tensor) -> Tensor:
        """The film of vectors, which are first replaced by the nearest codes, [B, C, S / factor, S / factor] -> [B, 1, S, S]."""
        film: Tensor = self.decoder(self.quantizer(latents.float())).float().clamp(-1, 1)
        return film

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Decode random codes, one film a seed, [B, 1, S, S] in [-1, 1]; `condition` is ignored.

        This is a compressor and no generator: codes are drawn one by one, as often as they were used in training, and know
        nothing of their neighbours. A diffusion on its codes makes films.
        """
        draws = Draws(seeds, device=self.quantizer.codes.device)
        with torch.inference_mode():
            return self.decode(self.quantizer.draw(self.config.image_size // self.factor, draws=draws))


class VqGanObjective(Objective):
    """Reconstruction of films from codes, the encoder's commitment to them, and a critic (Eq. 6, Esser et al. 2021)."""

    def __init__(self, model: nn.Module, config: VqGanObjectiveConfig) -> None:
        super().__init__()
        c = self.config = config
        self.model = model
        self.players = nn.ModuleDict({"model": model})
        self.phases = (AUTOENCODE,)
        if c.adversarial:
            self.players["critic"] = Critic(weight=c.adversarial, after=c.adversarial_after, channels=c.critic_channels,
                                            layers=c.critic_layers)
            self.phases = (AUTOENCODE, DISCRIMINATE)
        self.reconstruction = Reconstruction(absolute=c.absolute, squared=c.squared, perceptual=c.perceptual, features=c.features)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:  # noqa: D102
        model, critic = self.model, self.players["critic"] if self.config.adversarial else None
        assert isinstance(model, VqGanModel) and (critic is None or isinstance(critic, Critic))
        autoencode = phase == AUTOENCODE.name
        with torch.set_grad_enabled(autoencode and torch.is_grad_enabled()):
            latents = model.encoder(batch.images).float()
            if self.training and autoencode and bool(latents.isfinite().all()):
                model.quantizer.learn(latents)
            codes = model.quantizer(latents)
            made = model.decoder(codes).float()
        if critic is not None and not autoencode:
            return critic.losses(batch.images, made)
        terms = self.reconstruction(made, batch.images)
        if critic is not None:
            terms["adversarial"] = critic.term(made, torch.stack(list(terms.values())).sum(0), model.decoder.last.weight)
        distance = (latents - codes.detach()).square().flatten(1).mean(1)
        return {**terms, "commitment": self.config.commitment * distance}


FAMILY = Family(model_config=VqGanConfig, objective_config=VqGanObjectiveConfig, build_model=VqGanModel,
                build_objective=VqGanObjective)
