"""Samplers against diffusers' schedulers of the same name: one network, one start, the same noise, the same levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from synthorax.diffusion.noise import ddpm_sigmas, respaced, sampling_sigmas, sigma_to_timestep
from synthorax.diffusion.precondition import PARAMETERISATIONS, denoised_from_output
from synthorax.diffusion.samplers import Denoise, Noise, ddpm_learned, solve
from synthorax.registry import lookup

# diffusers hands torch tensors to numpy in a way that numpy 2 wants to be rid of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 1, 6, 6)
STEPS = 20
NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
"""Our parameterisations and the `prediction_type` of diffusers."""
TOLERANCE = 1e-4
"""diffusers keeps its levels in float32."""


def network(*, outputs: int = 1) -> Callable[[Tensor, Tensor], Tensor]:
    """A small random network F(state, sigma) that is far from the ideal one and depends on both."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, outputs, 3, padding=1)).double().requires_grad_(False)

    def answer(state: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.double().atan().reshape(-1, 1, 1, 1).expand(len(state), 1, *state.shape[2:])
        made: Tensor = layers(torch.cat([state.double(), level], dim=1))
        return made

    return answer


NETWORK = network()


def ours(parameterisation: str) -> Denoise:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        scalings = lookup(PARAMETERISATIONS, parameterisation, kind="parameterisation")(sigma, sigma_data=1.0)
        return denoised_from_output(NETWORK(scalings.like(x).c_in * x, sigma), x, scalings)

    return denoise


def start(sigma: Tensor) -> Tensor:
    return sigma * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def same_noise() -> tuple[Noise, torch.Generator]:
    """The numbers that a scheduler draws from the generator, for ours."""
    mine, theirs = (torch.Generator().manual_seed(2) for _ in range(2))
    return (lambda: torch.randn(SHAPE, generator=mine, dtype=torch.float64)), theirs


def preserving(x: Tensor, sigma: Tensor) -> Tensor:
    """The variance-preserving state of x."""
    return x / (1 + sigma**2).sqrt()


@pytest.mark.parametrize("parameterisation", NAMES)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_ddpm(parameterisation: str, kind: Any) -> None:
    scheduler = DDPMScheduler(beta_schedule="linear" if kind == "linear" else "squaredcos_cap_v2", timestep_spacing="trailing",
                              prediction_type=NAMES[parameterisation], clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(STEPS)
    # in float64: the cosine noise schedule ends near 0, where float32 is coarse
    scheduler.alphas_cumprod = 1 / (1 + ddpm_sigmas(kind) ** 2)
    sigmas = sampling_sigmas(kind, STEPS, sigma_min=1e-6, sigma_max=1e6)
    noise, generator = same_noise()
    state = preserving(start(sigmas[0]), sigmas[0])
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
        state = scheduler.step(NETWORK(state, sigma[None]), int(timestep), state, generator=generator).prev_sample
    made = solve(ours(parameterisation), start(sigmas[0]), sigmas, sampler="ddpm", noise=noise)
    torch.testing.assert_close(made, state, atol=TOLERANCE, rtol=TOLERANCE)


def test_ddpm_with_learned_variance() -> None:
    # "leading" ends in timestep 0, after which diffusers adds no noise; after a higher last timestep it does.
    scheduler = DDPMScheduler(timestep_spacing="leading", clip_sample=False, variance_type="learned_range")
    scheduler.set_timesteps(STEPS)
    scheduler.alphas_cumprod = 1 / (1 + ddpm_sigmas("linear") ** 2)
    sigmas = respaced("linear", STEPS, sigma_min=1e-6, sigma_max=1e6, spacing="leading")
    raw = network(outputs=2)

    def both(state: Tensor, sigma: Tensor) -> Tensor:
        output, between = raw(state, sigma).chunk(2, dim=1)
        return torch.cat([output, between.tanh()], dim=1)

    noise, generator = same_noise()
    state = preserving(start(sigmas[0]), sigmas[0])
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
        state = scheduler.step(both(state, sigma[None]), int(timestep), state, generator=generator).prev_sample

    def with_variance(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        output, between = both(preserving(x, sigma[:, None, None, None]), sigma).chunk(2, dim=1)
        return x - sigma[:, None, None, None] * output, (between + 1) / 2

    made = ddpm_learned(with_variance, start(sigmas[0]), sigmas, noise=noise)
    torch.testing.assert_close(made, state, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("parameterisation", NAMES)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(parameterisation: str, eta: float) -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing", prediction_type=NAMES[parameterisation], clip_sample=False)
    scheduler.set_timesteps(STEPS)
    sigmas = sampling_sigmas("linear", STEPS, sigma_min=1e-6, sigma_max=1e6)
    noise, generator = same_noise()
    state = preserving(start(sigmas[0]), sigmas[0])
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
        state = scheduler.step(NETWORK(state, sigma[None]), int(timestep), state, eta=eta, generator=generator).prev_sample
    made = solve(ours(parameterisation), start(sigmas[0]), sigmas, sampler="ddim", noise=noise, eta=eta)
    torch.testing.assert_close(made, state, atol=TOLERANCE, rtol=TOLERANCE)


def set_sigmas(scheduler: Any, sigmas: Tensor) -> None:
    """Make a scheduler visit our levels; its timesteps only count the steps, because the network is conditioned on sigma."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas.float()
    scheduler.set_begin_index(0)


schedules = pytest.mark.parametrize("schedule", ["karras", "exponential", "flow", "linear"])


def levels(schedule: str) -> Tensor:
    return sampling_sigmas(schedule, STEPS, sigma_min=0.02, sigma_max=60.0)


def walk_in_sigma(scheduler: Any, sigmas: Tensor, **settings: Any) -> Tensor:
    """Drive a scheduler whose state is x itself."""
    x = start(sigmas[0])
    for timestep in scheduler.timesteps:
        state = scheduler.scale_model_input(x, timestep)
        x = scheduler.step(NETWORK(state, scheduler.sigmas[scheduler.step_index][None]), timestep, x, **settings).prev_sample
    return x


@schedules
@pytest.mark.parametrize("parameterisation", ["eps", "v"])
def test_euler(schedule: str, parameterisation: str) -> None:
    scheduler = EulerDiscreteScheduler(prediction_type=NAMES[parameterisation])
    sigmas = levels(schedule)
    set_sigmas(scheduler, sigmas)
    theirs = walk_in_sigma(scheduler, sigmas)
    torch.testing.assert_close(solve(ours(parameterisation), start(sigmas[0]), sigmas, sampler="euler"), theirs.double(),
                               atol=TOLERANCE, rtol=TOLERANCE)


@schedules
def test_euler_ancestral(schedule: str) -> None:
    scheduler = EulerAncestralDiscreteScheduler()
    sigmas = levels(schedule)
    set_sigmas(scheduler, sigmas)
    noise, generator = same_noise()
    theirs = walk_in_sigma(scheduler, sigmas, generator=generator)
    made = solve(ours("eps"), start(sigmas[0]), sigmas, sampler="euler-a", noise=noise)
    torch.testing.assert_close(made, theirs.double(), atol=TOLERANCE, rtol=TOLERANCE)


@schedules
def test_heun(schedule: str) -> None:
    scheduler = HeunDiscreteScheduler()
    sigmas = levels(schedule)
    set_sigmas(scheduler, sigmas)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]]).float()  # as it lists its two stages
    theirs = walk_in_sigma(scheduler, sigmas)
    made = solve(ours("eps"), start(sigmas[0]), sigmas, sampler="heun")
    torch.testing.assert_close(made, theirs.double(), atol=TOLERANCE, rtol=TOLERANCE)


MULTISTEP = {
    "dpmpp-2m": lambda kind: DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, prediction_type=kind),
    "dpmpp-2m-sde": lambda kind: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2, prediction_type=kind),
    "unipc": lambda kind: UniPCMultistepScheduler(solver_order=2, solver_type="bh2", prediction_type=kind),
}


@schedules
@pytest.mark.parametrize("parameterisation", NAMES)
@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_solvers(name: str, schedule: str, parameterisation: str) -> None:
    scheduler: Any = MULTISTEP[name](NAMES[parameterisation])
    sigmas = levels(schedule)
    set_sigmas(scheduler, sigmas)
    noise, theirs_noise = same_noise()[0], same_noise()[0]
    state = preserving(start(sigmas[0]), sigmas[0])
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
        extra = {"variance_noise": theirs_noise()} if name == "dpmpp-2m-sde" else {}
        state = scheduler.step(NETWORK(state, sigma[None]), timestep, state, **extra).prev_sample
    made = solve(ours(parameterisation), start(sigmas[0]), sigmas, sampler=name, noise=noise)
    torch.testing.assert_close(made, state, atol=TOLERANCE, rtol=TOLERANCE)


def test_karras_levels_of_diffusers() -> None:
    scheduler = DPMSolverMultistepScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    table = ddpm_sigmas("linear")
    expected = sampling_sigmas("karras", STEPS, sigma_min=table[0].item(), sigma_max=table[-1].item())
    torch.testing.assert_close(expected.float(), scheduler.sigmas, rtol=5e-4, atol=1e-6)
    steps = sigma_to_timestep(expected[:-1], kind="linear")
    torch.testing.assert_close(steps.round().long(), scheduler.timesteps, atol=1, rtol=0)


@schedules
def test_flow_matching_is_euler_in_flow_time(schedule: str) -> None:
    sigmas = levels(schedule)
    times = sigmas / (1 + sigmas)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=times[:-1].tolist())
    x = start(sigmas[0])
    state = x * (1 - times[0])
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
        state = scheduler.step(NETWORK(state, sigma[None]), timestep, state).prev_sample
    torch.testing.assert_close(solve(ours("flow"), x, sigmas, sampler="euler"), state, atol=TOLERANCE, rtol=TOLERANCE)
