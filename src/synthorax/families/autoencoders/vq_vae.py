"""VQ-VAE and VQ-VAE-2: images as one or two grids of codes, and an autoregressive prior over the grids.

The autoencoder is that of van den Oord et al. 2017 (one grid) and Razavi et al. 2019 (two). The prior is p(coarse | condition)
p(fine | coarse, condition), a causal transformer for each grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, HasDiagnostics
from synthorax.config import AtLeastOne, Depth, Fraction, Multipliers, NotNegative, Patch, Side, WholeNotNegative, Width, one_of
from synthorax.errors import UsageError, nearest
from synthorax.families.autoencoders.first_stage import Reconstruction
from synthorax.families.autoencoders.vae import Clock, condition_dropout
from synthorax.losses.perceptual import is_scripted
from synthorax.nets.embedding import StatementEmbedding
from synthorax.nets.token_prior import TokenPrior
from synthorax.nets.vq_pyramid import PyramidConfig, Read, VqPyramid
from synthorax.protocols import ATTRIBUTES, Batch, Condition, Family, ModelSpec, Needs, Objective, Phase, SampleSettings
from synthorax.rng import Draws

CONDITION_PARTS = ("labels", "attributes")
AUTOENCODE = Phase(name="autoencode", updates=("autoencoder",))
PRIOR = Phase(name="prior", updates=("prior",))
WHILE_CODES_MOVE = 4
"""steps of the autoencoder for one of the prior, until the autoencoder is frozen"""


@dataclass(frozen=True, kw_only=True, slots=True)
class VqVaeConfig:
    """Shape of the autoencoder, its codebooks and the prior."""

    image_size: Side = 64
    """side of the square images in pixels"""
    parts: tuple[Annotated[str, one_of("synthorax.protocols:PARTS")], ...] = ()
    """what the prior is conditioned on: any of labels, attributes; nothing for an unconditional model"""
    levels: Literal[1, 2] = 2
    """grids of codes: 1 is VQ-VAE, 2 is VQ-VAE-2, a coarse grid and a fine one of twice its side"""
    codes: AtLeastOne = 256
    """vectors in the codebook of each grid"""
    code_channels: Width = 8
    """length of a code vector"""
    codebook: Literal["means", "gradient"] = "means"
    """how codes move: to the running means of the vectors that chose them, or by gradients"""
    channels: Width = 32
    """feature maps at the highest resolution"""
    multipliers: Multipliers = (1, 2)
    """feature maps of each level down to the fine grid, in units of `channels`; each level after the first halves the resolution"""
    patch: Patch = 2
    """pixels of a side folded into channels before the first convolution"""
    blocks: Depth = 1
    """residual blocks a level"""
    prior_width: Width = 96
    """features of a position in the prior"""
    prior_depth: Depth = 3
    """blocks of the prior of each grid"""
    prior_heads: Depth = 3
    """heads of each attention; must divide `prior_width`"""


@dataclass(frozen=True, kw_only=True, slots=True)
class VqVaeObjectiveConfig:
    """Weights of the losses, and when the autoencoder is done."""

    commitment: NotNegative = 0.25
    """weight of the squared distance of the encoder's vectors from their codes"""
    absolute: NotNegative = 1.0
    """weight of the absolute error of a pixel, in [-1, 1]"""
    squared: NotNegative = 1.0
    """weight of the squared error of a pixel"""
    perceptual: NotNegative = 0.3
    """weight of the perceptual distance"""
    features: str = "oriented"
    """perceptual features: a name in `losses.perceptual.PERCEPTUAL` or a TorchScript file"""
    autoencoder_steps: WholeNotNegative = 0
    """steps after which the autoencoder is frozen and the prior alone learns; 0: both learn in every step"""
    part_dropout: Fraction = 0.15
    """probability of dropping each part of the condition as a whole"""
    statement_dropout: Fraction = 0.2
    """probability of dropping each single label and attribute"""


class Priors(nn.Module):
    """p(coarse | condition) p(fine | coarse, condition), or the one of them that there is; grids of numbers [B, s, s], coarse first."""

    def __init__(self, config: VqVaeConfig, spec: ModelSpec, *, sides: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.width = tuple(config.parts), config.prior_width
        width = self.width
        statements = {"labels": len(spec.findings), "attributes": len(ATTRIBUTES) + len(spec.sites)}
        self.embeddings = nn.ModuleDict({part: StatementEmbedding(statements[part], width) for part in self.parts})
        self.grids = nn.ModuleList(
            TokenPrior(num_codes=config.codes, side=side, width=width, depth=config.prior_depth, heads=config.prior_heads,
                      below=config.codes if level else 0) for level, side in enumerate(sides))
        self.asked = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in sides)

    def negative_log_likelihood(self, grids: Sequence[Tensor], condition: Condition | None) -> list[Tensor]:
        """Minus the log-probability of the codes of each grid, its mean over them in nats, each [B]."""
        embedded = self._embedded(condition, len(grids[0]))
        lost = []
        for level, (prior, asked) in enumerate(zip(self.grids, self.asked, strict=True)):
            logits = prior(grids[level], asked(embedded), grids[level - 1] if level else None)
            lost.append(F.cross_entropy(logits, grids[level], reduction="none").flatten(1).mean(1))
        return lost

    def draw(self, condition: Condition | None, draws: Draws) -> list[Tensor]:
        """Grids drawn code by code, coarse first."""
        embedded, grids = self._embedded(condition, len(draws)), list[Tensor]()
        with torch.autocast(embedded.device.type, enabled=False):  # codes must not depend on how many images are made at once
            for prior, asked in zip(self.grids, self.asked, strict=True):
                assert isinstance(prior, TokenPrior)
                grids.append(prior.draw(draws.uniform(prior.side**2), asked(embedded.float()), grids[-1] if grids else None))
        return grids

    def _embedded(self, condition: Condition | None, size: int) -> Tensor:
        """The embedding of the condition, [B, width]; 0 where nothing is asked for."""
        embedded = torch.zeros(size, self.width, device=next(self.parameters()).device)
        if condition is None:
            return embedded
        for part, embedding in self.embeddings.items():
            embedded = embedded + embedding(getattr(condition, part).to(embedded))
        return embedded


class VqVaeModel(nn.Module, HasConditionInputs, HasDiagnostics):
    """The autoencoder of images as codes, and the prior of codes."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, VqVaeConfig(**spec.config)
        c = self.config
        _check_parts(c, spec)
        shape = PyramidConfig(image_size=c.image_size, levels=c.levels, channels=c.channels, multipliers=tuple(c.multipliers),
                              patch=c.patch, blocks=c.blocks, code_channels=c.code_channels, codes=c.codes,
                              gradient=c.codebook == "gradient")
        self.autoencoder = VqPyramid(shape)
        self.prior = Priors(c, spec, sides=shape.sides)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Code numbers of images [B, 1, S, S] in [-1, 1], each grid [B, s, s], coarse first."""
        return self.autoencoder.encode(images)

    def decode(self, grids: list[Tensor]) -> Tensor:
        """Images of code numbers, each grid [B, s, s] and coarse first -> [B, 1, S, S] in [-1, 1]."""
        return self.autoencoder.decode(grids)

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Decode codes drawn from the prior, one image a seed, [B, 1, S, S] in [-1, 1]."""
        with torch.inference_mode():
            return self.decode(self.prior.draw(condition, Draws(seeds, device=self.autoencoder.codes_in.weight.device)))

    def diagnostics(self) -> dict[str, float]:
        """Perplexity of the codes of each grid, coarse first: how many equally frequent codes would be as varied, 1 to `codes`."""
        grids = range(len(self.autoencoder.quantizers))
        return {f"codes_in_use_{number + 1}": round(self.autoencoder.quantizer(number).perplexity(), 1) for number in grids}

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """See `HasConditionInputs`."""
        for part, embedding in self.prior.embeddings.items():
            embedding.zero_unvaried_inputs(getattr(varied, part)[0].isnan())  # type: ignore[operator]


class VqVaeObjective(Objective[VqVaeModel]):
    """Reconstruction and commitment teach the autoencoder (Eq. 2, Razavi et al. 2019), and its codes teach the prior.

    |x - D(e)|^2 + commitment |E(x) - sg[e]|^2, with the codes e moved by running means, or by |sg[E(x)] - e|^2.
    """

    phases = (AUTOENCODE, PRIOR)

    def __init__(self, model: VqVaeModel, config: VqVaeObjectiveConfig) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"autoencoder": model.autoencoder, "prior": model.prior, "clock": Clock()})
        self.reconstruction = Reconstruction(absolute=config.absolute, squared=config.squared, perceptual=config.perceptual,
                                             features=config.features)

    def repeats(self, phase: Phase) -> int:
        """First the autoencoder, with the prior in every fourth step; then the prior alone; see `autoencoder_steps`."""
        steps, last = int(self._clock.steps), self.config.autoencoder_steps
        if not last:
            return 1
        if phase.name == AUTOENCODE.name:
            return int(steps < last)
        return int(steps >= last or steps % WHILE_CODES_MOVE == 0)

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model, config = self.model, self.config
        if phase == PRIOR.name:
            condition = condition_dropout(batch.condition, batch.draws, part=config.part_dropout, statement=config.statement_dropout)
            with torch.no_grad():
                grids = model.encode(batch.images)
            names = ("codes",) if len(grids) == 1 else ("coarse_codes", "fine_codes")
            return dict(zip(names, model.prior.negative_log_likelihood(grids, condition), strict=True))
        if self.training:
            self._clock.steps += 1
        reads = model.autoencoder.read(batch.images, learn=self.training)
        terms = self.reconstruction(model.autoencoder.image([read.codes for read in reads]), batch.images)
        terms["commitment"] = config.commitment * _summed(_distance(read) for read in reads)
        if model.config.codebook == "gradient":
            terms["codebook"] = _summed(model.autoencoder.quantizer(level).distance(read.latents) for level, read in enumerate(reads))
        return dict(terms)

    @property
    def _clock(self) -> Clock:
        clock = self.players["clock"]
        assert isinstance(clock, Clock)
        return clock


def _distance(read: Read) -> Tensor:
    return (read.latents - read.codes.detach()).square().flatten(1).mean(1)


def _summed(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


def _check_parts(config: VqVaeConfig, spec: ModelSpec) -> None:
    for part in config.parts:
        if part == "mask":
            raise UsageError("model.parts names mask, and the family vq-vae is conditioned on labels and attributes only: take mask out of "
                             "model.parts, or the family vae")
        if part not in CONDITION_PARTS:
            raise UsageError(f"model.parts: unknown part '{part}'; {nearest(part, CONDITION_PARTS)}")
    if "labels" in config.parts and not spec.findings:
        raise UsageError("model.parts names labels, and the images come with no findings: take labels out of model.parts")


FAMILY = Family(model_config=VqVaeConfig, objective_config=VqVaeObjectiveConfig, build_model=VqVaeModel, build_objective=VqVaeObjective,
                conditions=lambda config: tuple(config.parts), can=(HasConditionInputs, HasDiagnostics),
                needs=lambda model, objective: Needs(own_files=is_scripted(objective.features)))
