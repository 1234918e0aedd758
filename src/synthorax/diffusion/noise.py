"""Noise levels: conversions between conventions, how training draws them, and the schedules of sampling.

Everything here uses sigma of x = x0 + sigma n, with sigma in (0, inf). The two other conventions are conversions:

| convention | its state | its level |
|---|---|---|
| variance preserving (DDPM) | x sqrt(alpha_bar) | alpha_bar = 1 / (1 + sigma^2), or the timestep in 0 to 999 of a noise schedule |
| flow matching | x (1 - t) | t = sigma / (1 + sigma), from 0 (image) to 1 (noise) |

Levels are computed in float64, whatever the dtype of the images.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from synthorax.errors import UsageError, nearest
from synthorax.registry import lookup

NoiseSchedule = Literal["linear", "cosine"]

TRAINED_STEPS = 1000
"""Levels of a discrete noise schedule, T in the papers."""

SCHEDULES: dict[str, str] = {
    "karras": "synthorax.diffusion.noise:karras_sigmas",
    "karras-few": "synthorax.diffusion.noise:karras_few_sigmas",
    "exponential-few": "synthorax.diffusion.noise:exponential_few_sigmas",
    "linear": "synthorax.diffusion.noise:linear_sigmas",
    "cosine": "synthorax.diffusion.noise:cosine_sigmas",
    "flow": "synthorax.diffusion.noise:flow_sigmas",
    "exponential": "synthorax.diffusion.noise:exponential_sigmas",
}
"""How the levels of sampling fall: `(steps, *, sigma_min, sigma_max)` -> [steps + 1], float64, ending in 0."""

TRAINING_LEVELS: dict[str, str] = {
    "lognormal": "synthorax.diffusion.noise:lognormal_levels",
    "linear": "synthorax.diffusion.noise:linear_levels",
    "cosine": "synthorax.diffusion.noise:cosine_levels",
    "flow-uniform": "synthorax.diffusion.noise:flow_levels",
    "flow-logit-normal": "synthorax.diffusion.noise:lognormal_levels",  # the logit of the flow time is ln sigma
}
"""How the levels of training are drawn: `(uniform, normal, *, mean, std, sigma_min, sigma_max)` -> sigma, all [B]."""


def sampling_sigmas(name: str, steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """The levels of the schedule called `name`, [steps + 1], float64, falling from at most `sigma_max` to 0.

    >>> sampling_sigmas("exponential", 3, sigma_min=0.01, sigma_max=1.0)
    tensor([1.0000, 0.1000, 0.0100, 0.0000], dtype=torch.float64)
    """
    check_schedule(name, steps)
    schedule = lookup(SCHEDULES, name, kind="schedule")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UsageError(f"noise levels from {sigma_min} to {sigma_max}: the lowest must be above 0 and the highest above it, and finite")
    sigmas: Tensor = schedule(steps, sigma_min=sigma_min, sigma_max=sigma_max)
    return sigmas


def check_schedule(name: str, steps: int) -> None:
    """Raises UsageError for a name that is no schedule, and for a number of steps that none has."""
    if name not in SCHEDULES:
        raise UsageError(f"unknown schedule '{name}'; {nearest(name, SCHEDULES)}")
    if not 1 <= steps <= TRAINED_STEPS:
        raise UsageError(f"{steps} steps: choose from 1 to {TRAINED_STEPS}")


# Conversions. Each takes any shape and keeps it.


def sigma_to_alpha_bar(sigma: Tensor) -> Tensor:
    """Share of the image in the variance of a variance-preserving state, float64 in (0, 1)."""
    return 1 / (1 + sigma.double() ** 2)


def alpha_bar_to_sigma(alpha_bar: Tensor) -> Tensor:
    """Inverse of `sigma_to_alpha_bar`."""
    return ((1 - alpha_bar.double()) / alpha_bar.double()).sqrt()


def sigma_to_flow_time(sigma: Tensor) -> Tensor:
    """Share of the noise in (1 - t) x0 + t n, float64 in (0, 1)."""
    return sigma.double() / (1 + sigma.double())


def flow_time_to_sigma(time: Tensor) -> Tensor:
    """Inverse of `sigma_to_flow_time`."""
    return time.double() / (1 - time.double())


def sigma_to_timestep(sigma: Tensor, *, kind: NoiseSchedule) -> Tensor:
    """Fractional timestep in [0, 999], interpolated in ln sigma; levels beyond the noise schedule get its first or last timestep."""
    return step_between(sigma, ddpm_sigmas(kind))


def step_between(sigma: Tensor, sigmas: Tensor) -> Tensor:
    """Where levels [B] lie among rising `sigmas` [T] in ln sigma, float64 [B] in [0, T - 1]; levels beyond them get the first or last."""
    logs, log = sigmas.log().to(sigma.device), sigma.double().log()
    above = torch.searchsorted(logs, log).clamp(1, len(logs) - 1)
    fraction = (log - logs[above - 1]) / (logs[above] - logs[above - 1])
    return above - 1 + fraction.clamp(0, 1)


def timestep_to_sigma(timestep: Tensor, *, kind: NoiseSchedule) -> Tensor:
    """Inverse of `sigma_to_timestep` inside the noise schedule; timesteps outside [0, 999] count as 0 or 999."""
    logs, timestep = ddpm_sigmas(kind).log().to(timestep.device), timestep.double().clamp(0, TRAINED_STEPS - 1)
    below = timestep.floor().long().clamp(max=TRAINED_STEPS - 2)
    return torch.lerp(logs[below], logs[below + 1], timestep - below).exp()


# Timetables


def ddpm_sigmas(kind: NoiseSchedule) -> Tensor:
    """The rising levels of a discrete noise schedule, [1000], float64; timestep t is row t.

    "linear": beta rises from 1e-4 to 0.02 (Sec. 4, Ho et al. 2020). "cosine": Eq. 17, Nichol and Dhariwal 2021, beta at most 0.999.
    """
    if kind == "linear":
        beta = torch.linspace(1e-4, 0.02, TRAINED_STEPS, dtype=torch.float64, device="cpu")
    elif kind == "cosine":
        offset = 0.008
        part = torch.arange(TRAINED_STEPS + 1, dtype=torch.float64, device="cpu") / TRAINED_STEPS
        wanted = ((part + offset) / (1 + offset) * math.pi / 2).cos() ** 2  # alpha_bar but for a constant factor
        beta = (1 - wanted[1:] / wanted[:-1]).clamp(max=0.999)
    else:
        raise UsageError(f"unknown noise schedule '{kind}'; choose from: linear, cosine")
    return alpha_bar_to_sigma((1 - beta).cumprod(0))


def level_below(sigma: Tensor, *, kind: NoiseSchedule) -> Tensor:
    """The highest level of a noise schedule that is below `sigma`, and 0 below its lowest; any shape, float64.

    A level that equals one of the noise schedule but for the rounding of float32 has the one before it below.
    """
    levels = ddpm_sigmas(kind).to(sigma.device)
    return torch.cat([levels.new_zeros(1), levels])[torch.searchsorted(levels * (1 + 1e-5), sigma.double())]


# Schedules of sampling


def karras_sigmas(steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """`steps` falling noise levels and a final 0, [steps + 1], float64 (Eq. 5, Karras et al. 2022).

    >>> karras_sigmas(2, sigma_min=1.0, sigma_max=2.0).round().tolist()
    [2.0, 1.0, 0.0]
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64, device="cpu")])


def karras_few_sigmas(steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """The first of every four levels of `karras_sigmas` with four times the steps, and a final 0, [steps + 1].

    The last level is then well above `sigma_min`, where a step would change next to nothing: for 12 steps and fewer.
    """
    return karras_sigmas(4 * steps, sigma_min=sigma_min, sigma_max=sigma_max)[::4]


def exponential_few_sigmas(steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """The same of `exponential_sigmas`."""
    return exponential_sigmas(4 * steps, sigma_min=sigma_min, sigma_max=sigma_max)[::4]


def exponential_sigmas(steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """Levels that fall by the same factor each, from `sigma_max` to `sigma_min`, and a final 0, [steps + 1]."""
    logs = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64, device="cpu")
    return torch.cat([logs.exp(), torch.zeros(1, dtype=torch.float64, device="cpu")])


def flow_sigmas(steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """Levels at equal distances in flow time, from `sigma_max` to `sigma_min`, and a final 0, [steps + 1]."""
    times = torch.linspace(sigma_max / (1 + sigma_max), sigma_min / (1 + sigma_min), steps, dtype=torch.float64, device="cpu")
    return torch.cat([flow_time_to_sigma(times), torch.zeros(1, dtype=torch.float64, device="cpu")])


def linear_sigmas(steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """The linear noise schedule of DDPM, respaced; see `respaced`."""
    return respaced("linear", steps, sigma_min=sigma_min, sigma_max=sigma_max)


def cosine_sigmas(steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """The cosine noise schedule of improved DDPM, respaced; see `respaced`."""
    return respaced("cosine", steps, sigma_min=sigma_min, sigma_max=sigma_max)


def respaced(kind: NoiseSchedule, steps: int, *, sigma_min: float, sigma_max: float,
             spacing: Literal["trailing", "leading"] = "trailing") -> Tensor:
    """`steps` of the noise schedule's levels in [sigma_min, sigma_max], evenly spaced in timesteps, falling, and a final 0, [steps + 1].

    "trailing" counts down from the highest level, so that sampling starts where nothing but noise is left. "leading" counts up from
    the lowest, as DDIM did, and leaves the highest out (Table 2, Lin et al. 2024, "Common diffusion noise schedules").
    """
    levels = ddpm_sigmas(kind)
    inside = levels[(levels >= sigma_min) & (levels <= sigma_max)]
    num = len(inside)
    if steps > num:
        raise UsageError(f"{steps} steps of the {kind} noise schedule, which has {num} levels from {sigma_min} to {sigma_max}; "
                         f"choose fewer, or the schedule 'exponential'")
    if spacing == "trailing":
        rows = (torch.arange(steps, 0, -1, dtype=torch.float64, device="cpu") * num / steps).round().long() - 1
    else:
        rows = torch.arange(steps - 1, -1, -1, device="cpu") * (num // steps)
    return torch.cat([inside[rows], torch.zeros(1, dtype=torch.float64, device="cpu")])


# Levels of training


def lognormal_levels(uniform: Tensor, normal: Tensor, *, mean: float, std: float, sigma_min: float, sigma_max: float) -> Tensor:
    """ln sigma normally distributed, unbounded (Table 1, Karras et al. 2022), [B] in the dtype of `normal`.

    The logit of the flow time is ln t - ln(1 - t) = ln sigma, so these are also the logit-normal times of Sec. 3.1, Esser et al. 2024.
    """
    return (mean + std * normal.double()).exp().to(normal)


def flow_levels(uniform: Tensor, normal: Tensor, *, mean: float, std: float, sigma_min: float, sigma_max: float) -> Tensor:
    """Flow times uniform between those of `sigma_min` and `sigma_max`, [B] in the dtype of `uniform` (Lipman et al. 2023)."""
    low, high = sigma_min / (1 + sigma_min), sigma_max / (1 + sigma_max)
    return flow_time_to_sigma(low + (high - low) * uniform.double()).to(uniform)


def linear_levels(uniform: Tensor, normal: Tensor, *, mean: float, std: float, sigma_min: float, sigma_max: float) -> Tensor:
    """Each level of the linear noise schedule in [sigma_min, sigma_max] equally often, [B] in the dtype of `uniform` (Ho et al. 2020)."""
    return _any_of("linear", uniform, sigma_min=sigma_min, sigma_max=sigma_max)


def cosine_levels(uniform: Tensor, normal: Tensor, *, mean: float, std: float, sigma_min: float, sigma_max: float) -> Tensor:
    """Each level of the cosine noise schedule in [sigma_min, sigma_max] equally often, [B] in the dtype of `uniform`."""
    return _any_of("cosine", uniform, sigma_min=sigma_min, sigma_max=sigma_max)


def _any_of(kind: NoiseSchedule, uniform: Tensor, *, sigma_min: float, sigma_max: float) -> Tensor:
    levels = ddpm_sigmas(kind)
    inside = levels[(levels >= sigma_min) & (levels <= sigma_max)].to(uniform.device)
    if not len(inside):
        raise UsageError(f"the {kind} noise schedule has no level from {sigma_min} to {sigma_max}")
    return inside[(uniform.double() * len(inside)).long()].to(uniform)
