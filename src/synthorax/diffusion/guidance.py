"""Guidance: wrappers of `denoise`, by parts of the condition (classifier-free), a weaker model, or a classifier.

All of it is linear in the estimates: D(x) = sum_i c_i D(x; condition_i) with sum_i c_i = 1. The estimates whose c_i is not 0 are
one network call on rows laid end to end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from synthorax.diffusion.samplers import Denoise
from synthorax.errors import UsageError, nearest
from synthorax.prompts import split_prompt
from synthorax.protocols import ALL_PARTS, PARTS, Condition, SampleSettings

ConditionalDenoise = Callable[[Tensor, Tensor, Condition], Tensor]
Term = tuple[Condition, Tensor]
"""a condition of B rows, and the factor of its estimate, [B]"""

_NEGLIGIBLE = 1e-6


def guided(denoise: ConditionalDenoise, condition: Condition, settings: SampleSettings) -> Denoise:
    """Classifier-free guidance with a weight of its own for each part of the condition.

    D = D(nothing) + sum_i w_i (D(parts up to i) - D(parts up to i - 1)), parts in the order of `PARTS`: Eq. 3 of Brooks et al. 2023
    ("InstructPix2Pix") for any number of parts. Parts that no row states are skipped, and parts of equal weight are one step, so that equal
    weights are the guidance of Ho and Salimans 2022 (Eq. 6, on estimates of x0) and weights of 1 are plain conditioning in one call.
    Outside the noise levels `guidance_from` to `guidance_to` every weight is 1 (Kynkaanniemi et al. 2024).

    >>> denoise = guided(model.denoise, condition, SampleSettings(guidance=1.5, part_guidance={"mask": 3.0}))  # doctest: +SKIP
    """
    return composed(denoise, [(condition, 1.0)], settings)


def guided_by_prompts(denoise: ConditionalDenoise, condition: Condition, settings: SampleSettings, *, parts: Sequence[str]) -> Denoise:
    """`guided`, where upper-case AND and NOT in a text join several conditions, each row by its own (see `prompts.split_prompt`).

    The first text is joined with all other parts, of which the model is conditioned on `parts`; the others stand alone, and NOT removes its
    text and nothing else. Raises UsageError for a guidance weight of a part that is not among `parts`.
    """
    check_guidance(settings, parts=parts)
    condition = condition.only(parts)
    operands = [split_prompt(text) for text in condition.text or ()]
    if all(len(row) == 1 and row[0][1] > 0 for row in operands):
        return guided(denoise, condition, settings)
    operands = [row if row[0][1] > 0 else (("", 1.0), *row) for row in operands]
    joined: list[tuple[Condition, float | Tensor]] = []
    for number in range(max(map(len, operands))):
        texts = tuple(row[number][0] if number < len(row) else "" for row in operands)
        signs = torch.tensor([row[number][1] if number < len(row) else 0.0 for row in operands], device=condition.labels.device)
        joined.append((replace(condition if number == 0 else condition.only(()), text=texts), signs))
    return composed(denoise, joined, settings)


def composed(denoise: ConditionalDenoise, conditions: Sequence[tuple[Condition, float | Tensor]], settings: SampleSettings) -> Denoise:
    """Several conditions at once: D(nothing) + sum_i f_i (guided D(c_i) - D(nothing)) (conjunction and negation of Liu et al. 2022).

    The factor f_i is 1 for AND and -1 for NOT; a tensor [B] gives each row its own, 0 where the row does not have that condition. The
    guidance of each is that of `settings`, as in `guided`; outside its interval only the factors count.
    """
    _check(conditions, settings)
    # Copies, since autograd refuses tensors made in inference mode, where samplers run and `classifier_guided` needs a gradient.
    with torch.inference_mode(False):
        own = [(condition[torch.arange(len(condition), device=condition.labels.device)],
                torch.as_tensor(factor, device=condition.labels.device).float().clone().expand(len(condition)))
               for condition, factor in conditions]
        inside = _combined(denoise, _terms(own, lambda part: settings.part_guidance.get(part, settings.guidance)))
        outside = _combined(denoise, _terms(own, lambda part: 1.0))

    def interval(x: Tensor, sigma: Tensor) -> Tensor:
        acts = (sigma >= settings.guidance_from) & (sigma <= settings.guidance_to)
        if bool(acts.all()):
            return inside(x, sigma)
        if not bool(acts.any()):
            return outside(x, sigma)
        return torch.where(_over_pixels(acts, x), inside(x, sigma), outside(x, sigma))

    return interval


def autoguided(denoise: Denoise, weak: Denoise, *, weight: float) -> Denoise:
    """Autoguidance, away from a worse version of the same model: D_weak + weight (D - D_weak) (Karras et al. 2024, "Guiding a diffusion
    model with a bad version of itself").

    `weak` is a smaller or less trained denoiser under the same condition; weight 1 is no guidance.
    """
    _finite(weight)
    if weight == 1:
        return denoise

    def away(x: Tensor, sigma: Tensor) -> Tensor:
        worse = weak(x, sigma)
        return worse + weight * (denoise(x, sigma) - worse)

    return away


def clip_denoised(denoise: Denoise, settings: SampleSettings) -> Denoise:
    """With `settings.clip`, estimates are clipped to [-1, 1] at every noise level.

    Where noise is predicted, sigma multiplies its error in the estimate, which in the first steps shifts the brightness of whole images.
    """
    return (lambda x, sigma: denoise(x, sigma).clamp(-1, 1)) if settings.clip else denoise


def classifier_guided(denoise: Denoise, log_probability: Callable[[Tensor], Tensor], *, weight: float) -> Denoise:
    """Classifier guidance: D(x) + weight sigma^2 grad_x log p(y | D(x)).

    The guided score of Dhariwal and Nichol 2021 (Algorithm 2), as an estimate of x0; the classifier sees the estimate instead of
    the noise, and the gradient goes through the denoiser (Bansal et al. 2023; Chung et al. 2023). So it needs no training on noisy
    images, at about three times the cost of a call. `log_probability` takes estimates [B, C, H, W] and returns [B], in nats.
    """
    _finite(weight)
    if weight == 0:
        return denoise

    def towards(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            noisy, level = x.detach().clone().requires_grad_(), sigma.detach().clone()
            estimate = denoise(noisy, level)
            total = log_probability(estimate).float().sum()
            slope = torch.autograd.grad(total, noisy)[0]
        return estimate.detach() + weight * _over_pixels(level, x) ** 2 * slope

    return towards


def check_guidance(settings: SampleSettings, *, parts: Sequence[str] = PARTS) -> None:
    """Raises UsageError for weights that are not finite, of parts of a condition that are not among `parts`, and for no interval."""
    for part in settings.part_guidance:
        if part not in PARTS:
            raise UsageError(f"guidance of an unknown part '{part}'; {nearest(part, PARTS)}")
        if part not in parts:
            raise UsageError(f"guidance of '{part}': the model is not conditioned on it; it is conditioned on "
                             f"{', '.join(parts) or 'nothing'}")
    for weight in (settings.guidance, *settings.part_guidance.values()):
        _finite(weight)
    if not 0 <= settings.guidance_from <= settings.guidance_to < math.inf:
        raise UsageError(f"guidance from noise level {settings.guidance_from} to {settings.guidance_to}: the first must be 0 or above "
                         "and not above the second, and both finite")


def _check(conditions: Sequence[tuple[Condition, float | Tensor]], settings: SampleSettings) -> None:
    check_guidance(settings)
    if not conditions or len({len(condition) for condition, _ in conditions}) != 1:
        raise UsageError("conditions are composed row by row; give at least one, and all with the same number of rows")
    for _, factor in conditions:
        if not bool(torch.as_tensor(factor).isfinite().all()):
            raise UsageError("the factor of a composed condition is not finite; use 1 for AND and -1 for NOT")


def _finite(weight: float) -> None:
    if not math.isfinite(weight):
        raise UsageError(f"guidance {weight} is not a finite number; 1 is none, and 1 to 4 is usual")


def _terms(conditions: Sequence[tuple[Condition, Tensor]], weight_of: Callable[[str], float]) -> list[Term]:
    """The chains of all conditions with their differences multiplied out, less what is multiplied by 0 in every row."""
    nothing = conditions[0][0].only(())
    free = torch.ones(len(nothing), device=nothing.labels.device)
    terms: list[Term] = []
    for condition, factor in conditions:
        parts = [part for part in ALL_PARTS if bool(condition.stated(part).any())]
        weights = [weight_of(part) for part in parts] + [0.0]
        free = free - factor * weights[0]
        for number in range(len(parts)):
            last = number == len(parts) - 1
            # w_i (D_i - D_(i-1)) + w_(i+1) (D_(i+1) - D_i) holds D_i with w_i - w_(i+1); the last part has no follower.
            terms.append((condition if last else condition.only(parts[: number + 1]), factor * (weights[number] - weights[number + 1])))
    terms.insert(0, (nothing, free))
    return [(condition, factor) for condition, factor in terms if bool((factor.abs() > _NEGLIGIBLE).any())]


def _combined(denoise: ConditionalDenoise, terms: Sequence[Term]) -> Denoise:
    condition = reduce(Condition.join, [condition for condition, _ in terms])
    factors = torch.stack([factor for _, factor in terms])  # [T, B]
    plain = len(terms) == 1  # factors of the terms sum to 1

    def combined(x: Tensor, sigma: Tensor) -> Tensor:
        if plain:
            return denoise(x, sigma, condition)
        estimates = denoise(x.repeat(len(terms), *[1] * (x.ndim - 1)), sigma.repeat(len(terms)), condition)
        each = estimates.reshape(len(terms), *x.shape)  # [T, B, C, H, W]
        return (factors.to(each).reshape(*factors.shape, *[1] * (x.ndim - 1)) * each).sum(0)

    return combined


def _over_pixels(values: Tensor, x: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1], or with as many axes as `x` has."""
    return values.reshape(-1, *[1] * (x.ndim - 1))
