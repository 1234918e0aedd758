"""Noise levels: the conventions convert into one another, and every schedule visits what its paper says."""

from __future__ import annotations

import doctest
import math
from types import ModuleType

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from synthorax.diffusion import inversion, noise, precondition, samplers, variance
from synthorax.diffusion.noise import (
    SCHEDULES,
    TRAINED_STEPS,
    TRAINING_LEVELS,
    NoiseSchedule,
    alpha_bar_to_sigma,
    ddpm_sigmas,
    flow_time_to_sigma,
    karras_sigmas,
    level_below,
    respaced,
    sampling_sigmas,
    sigma_to_alpha_bar,
    sigma_to_flow_time,
    sigma_to_timestep,
    timestep_to_sigma,
)
from synthorax.errors import UsageError
from synthorax.registry import lookup

LEVELS = torch.logspace(-3, 2, 101, dtype=torch.float64)
KINDS: tuple[NoiseSchedule, ...] = ("linear", "cosine")
noise_schedules = pytest.mark.parametrize("kind", KINDS)


# Conversions


def test_alpha_bar_and_flow_time_are_the_shares_of_image_and_noise() -> None:
    """An image of unit variance has the share alpha_bar in the variance of x, and x (1 - t) is (1 - t) x0 + t n."""
    share, time = sigma_to_alpha_bar(LEVELS), sigma_to_flow_time(LEVELS)
    torch.testing.assert_close(share * LEVELS**2, 1 - share)
    torch.testing.assert_close((1 - time) * LEVELS, time)
    torch.testing.assert_close(alpha_bar_to_sigma(share), LEVELS)
    torch.testing.assert_close(flow_time_to_sigma(time), LEVELS)


def test_conversions_of_float32_are_made_in_float64() -> None:
    single = torch.tensor([0.5], dtype=torch.float32)
    for convert in (sigma_to_alpha_bar, alpha_bar_to_sigma, sigma_to_flow_time, flow_time_to_sigma):
        assert convert(single).dtype == torch.float64
    for convert_by in (sigma_to_timestep, timestep_to_sigma):
        assert convert_by(single, kind="linear").dtype == torch.float64


@noise_schedules
def test_timesteps_return(kind: NoiseSchedule) -> None:
    sigmas, steps = ddpm_sigmas(kind), torch.arange(TRAINED_STEPS, dtype=torch.float64)
    torch.testing.assert_close(sigma_to_timestep(sigmas, kind=kind), steps)
    torch.testing.assert_close(timestep_to_sigma(steps, kind=kind), sigmas)
    between = torch.tensor([0.25, 17.5, 998.9], dtype=torch.float64).reshape(3, 1)
    torch.testing.assert_close(sigma_to_timestep(timestep_to_sigma(between, kind=kind), kind=kind), between)
    torch.testing.assert_close(timestep_to_sigma(between[1:2], kind=kind).flatten(), (sigmas[17] * sigmas[18]).sqrt()[None])


@noise_schedules
def test_levels_beyond_the_schedule_get_its_ends(kind: NoiseSchedule) -> None:
    assert sigma_to_timestep(torch.tensor([1e-6, 1e6]), kind=kind).tolist() == [0.0, 999.0]
    ends = ddpm_sigmas(kind)[[0, -1]]
    torch.testing.assert_close(timestep_to_sigma(torch.tensor([-5.0, 2000.0]), kind=kind), ends)


# Timetables


@pytest.mark.parametrize(("kind", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_discrete_schedules_are_those_of_ddpm_and_improved_ddpm(kind: NoiseSchedule, theirs: str) -> None:
    expected = DDPMScheduler(num_train_timesteps=TRAINED_STEPS, beta_schedule=theirs).alphas_cumprod.double()
    torch.testing.assert_close(sigma_to_alpha_bar(ddpm_sigmas(kind)), expected, rtol=2e-4, atol=1e-9)
    assert bool((ddpm_sigmas(kind).diff() > 0).all())


def test_the_cosine_schedule_follows_its_formula_up_to_the_clipped_end() -> None:
    part = torch.arange(1, TRAINED_STEPS, dtype=torch.float64) / TRAINED_STEPS

    def wanted(part: Tensor) -> Tensor:
        return ((part + 0.008) / 1.008 * math.pi / 2).cos() ** 2

    share = wanted(part) / wanted(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(sigma_to_alpha_bar(ddpm_sigmas("cosine"))[:-1], share)
    last = sigma_to_alpha_bar(ddpm_sigmas("cosine"))[-2:]
    assert (last[1] / last[0]).item() == pytest.approx(0.001)  # beta at most 0.999


@noise_schedules
def test_the_level_below_is_the_one_before_even_after_rounding(kind: NoiseSchedule) -> None:
    sigmas = ddpm_sigmas(kind)
    before = torch.cat([torch.zeros(1, dtype=torch.float64), sigmas[:-1]])
    assert torch.equal(level_below(sigmas, kind=kind), before)
    assert torch.equal(level_below(sigmas.float(), kind=kind), before)
    assert level_below(torch.tensor([1e-4, 1e6]), kind=kind).tolist() == [0.0, sigmas[-1].item()]
    assert level_below((sigmas[4:5] + sigmas[5:6]) / 2, kind=kind) == sigmas[4]


# Schedules of sampling


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 50, 900])
def test_every_schedule_falls_from_the_highest_level_to_zero(name: str, steps: int) -> None:
    sigmas = sampling_sigmas(name, steps, sigma_min=0.01, sigma_max=70.0)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float64 and sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())
    assert 64.0 < sigmas[0] < 70.001 and sigmas[-2] >= 0.00999
    if steps > 1 and name in ("karras", "flow", "exponential"):
        assert sigmas[-2].item() == pytest.approx(0.01)


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_lie_on_the_processor_whatever_the_device_of_the_context(name: str) -> None:
    with torch.device("meta"):
        levels = sampling_sigmas(name, 4, sigma_min=0.01, sigma_max=80.0)
    torch.testing.assert_close(levels, sampling_sigmas(name, 4, sigma_min=0.01, sigma_max=80.0), rtol=0, atol=0)


def test_karras_levels_fall_evenly_in_the_seventh_root() -> None:
    sigmas = karras_sigmas(18, sigma_min=0.01, sigma_max=50.0)
    roots = sigmas[:-1] ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(17))


@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_few_levels_are_every_fourth_of_all(name: str) -> None:
    few = sampling_sigmas(f"{name}-few", 4, sigma_min=0.005, sigma_max=80.0)
    assert few.tolist() == sampling_sigmas(name, 16, sigma_min=0.005, sigma_max=80.0)[[0, 4, 8, 12, 16]].tolist()
    assert few[-2] > 0.03


def test_flow_and_exponential_levels_are_even_in_their_own_measure() -> None:
    times = sigma_to_flow_time(sampling_sigmas("flow", 20, sigma_min=0.01, sigma_max=50.0)[:-1])
    torch.testing.assert_close(times.diff(), times.diff()[:1].expand(19))
    logs = sampling_sigmas("exponential", 20, sigma_min=0.01, sigma_max=50.0)[:-1].log()
    torch.testing.assert_close(logs.diff(), logs.diff()[:1].expand(19))


@noise_schedules
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_respaced_schedules_visit_the_timesteps_that_diffusers_visits(kind: NoiseSchedule, spacing: str, steps: int) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=TRAINED_STEPS, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    ours = respaced(kind, steps, sigma_min=1e-9, sigma_max=1e9, spacing="trailing" if spacing == "trailing" else "leading")
    assert torch.equal(ours[:-1], ddpm_sigmas(kind)[scheduler.timesteps])


@noise_schedules
def test_a_discrete_schedule_has_no_more_levels_than_it_has(kind: NoiseSchedule) -> None:
    assert len(sampling_sigmas(kind, TRAINED_STEPS, sigma_min=1e-6, sigma_max=1e6)) == TRAINED_STEPS + 1
    with pytest.raises(UsageError, match=rf"1000 steps of the {kind} noise schedule, which has \d+ levels from 0.02 to 80.0; choose fewer"):
        sampling_sigmas(kind, TRAINED_STEPS, sigma_min=0.02, sigma_max=80.0)


@pytest.mark.parametrize("steps", [0, -1, TRAINED_STEPS + 1])
def test_zero_steps_and_more_than_were_trained_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=f"{steps} steps: choose from 1 to 1000"):
        sampling_sigmas("karras", steps, sigma_min=0.01, sigma_max=80.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (0.1, math.inf), (math.nan, 1.0)])
def test_levels_that_cannot_be_are_refused(low: float, high: float) -> None:
    with pytest.raises(UsageError, match="noise levels from"):
        sampling_sigmas("karras", 10, sigma_min=low, sigma_max=high)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown schedule 'karas'; did you mean 'karras'"):
        sampling_sigmas("karas", 10, sigma_min=0.01, sigma_max=80.0)
    with pytest.raises(UsageError, match="unknown noise schedule 'sigmoid'"):
        ddpm_sigmas("sigmoid")  # type: ignore[arg-type]


# Levels of training


def sample_levels(name: str, *, num: int = 50_000, mean: float = -0.8, std: float = 1.4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    uniform, normal = torch.rand(num, generator=generator), torch.randn(num, generator=generator)
    levels: Tensor = lookup(TRAINING_LEVELS, name, kind="way to draw levels")(uniform, normal, mean=mean, std=std,
                                                                              sigma_min=0.02, sigma_max=50.0)
    assert levels.shape == (num,) and levels.dtype == torch.float32
    return levels.double()


def test_levels_of_edm_are_log_normal() -> None:
    logs = sample_levels("lognormal").log()
    assert logs.mean().item() == pytest.approx(-0.8, abs=0.03) and logs.std().item() == pytest.approx(1.4, abs=0.03)


def test_times_of_rectified_flow_are_logit_normal() -> None:
    logits = sigma_to_flow_time(sample_levels("flow-logit-normal", mean=0.5, std=1.0)).logit()
    assert logits.mean().item() == pytest.approx(0.5, abs=0.02) and logits.std().item() == pytest.approx(1.0, abs=0.02)


def test_flow_times_are_uniform_inside_the_range() -> None:
    times = sigma_to_flow_time(sample_levels("flow-uniform"))
    low, high = 0.02 / 1.02, 50 / 51
    assert low <= times.min() < low + 0.001 and high - 0.001 < times.max() <= high + 1e-6
    torch.testing.assert_close(times.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)),
                               low + (high - low) * torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), atol=0.01, rtol=0)


@noise_schedules
def test_levels_of_a_discrete_schedule_are_equally_likely(kind: NoiseSchedule) -> None:
    table = ddpm_sigmas(kind)
    inside = table[(table >= 0.02) & (table <= 50.0)]
    steps = sigma_to_timestep(sample_levels(kind), kind=kind)
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    counts = torch.bincount(steps.round().long(), minlength=TRAINED_STEPS)
    first = int(sigma_to_timestep(inside[:1], kind=kind).round())
    assert int((counts > 0).sum()) == len(inside) == int((counts[first:first + len(inside)] > 0).sum())
    expected = 50_000 / len(inside)
    assert (((counts[first:first + len(inside)] - expected) ** 2).sum() / expected).item() == pytest.approx(len(inside), rel=0.25)


@noise_schedules
def test_the_highest_uniform_number_is_the_highest_level(kind: NoiseSchedule) -> None:
    draw = lookup(TRAINING_LEVELS, kind, kind="way to draw levels")
    ends = draw(torch.tensor([0.0, 1 - 2.0**-24]), torch.zeros(2), mean=0.0, std=1.0, sigma_min=1e-9, sigma_max=1e9)
    torch.testing.assert_close(ends, ddpm_sigmas(kind)[[0, -1]].float())
    with pytest.raises(UsageError, match="has no level"):
        draw(torch.zeros(1), torch.zeros(1), mean=0.0, std=1.0, sigma_min=1e-9, sigma_max=1e-8)


def test_every_name_in_the_tables_exists() -> None:
    for table in (SCHEDULES, TRAINING_LEVELS):
        assert all(hasattr(noise, entry.partition(":")[2]) for entry in table.values())


@pytest.mark.parametrize("module", [noise, precondition, samplers, variance, inversion], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_are_true(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
