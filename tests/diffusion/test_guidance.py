"""Guidance against denoisers whose answer is known for every subset of the condition, and against exact Gaussian posteriors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from synthorax.diffusion.guidance import autoguided, classifier_guided, composed, guided
from synthorax.errors import UsageError
from synthorax.protocols import PARTS, Condition, SampleSettings

ROWS = 3


def stated(parts: Sequence[str], *, rows: int = ROWS) -> Condition:
    """A condition of which every row states these parts."""
    everything = Condition(labels=torch.ones(rows, 2), attributes=torch.full((rows, 5), 0.5), lesions=torch.full((rows, 2, 5), 0.5),
                           mask=torch.ones(rows, 1, 4, 4), text=("a nodule",) * rows, image=torch.zeros(rows, 1, 4, 4))
    return everything.only(parts)


class Subsets:
    """A denoiser that answers with another number for each set of stated parts, plus a part of x, and counts what it is asked."""

    def __init__(self) -> None:
        self.values = torch.randn(2 ** len(PARTS), generator=torch.Generator().manual_seed(0))
        self.rows: list[int] = []

    def value(self, parts: Sequence[str]) -> float:
        return self.values[sum(2**PARTS.index(part) for part in parts)].item()

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        assert len(x) == len(sigma) == len(condition)
        self.rows.append(len(x))
        codes = sum(2**number * condition.stated(part).long() for number, part in enumerate(PARTS))
        assert isinstance(codes, Tensor)
        return 0.5 * x + (self.values[codes] * sigma)[:, None, None, None]


def answer(denoise: Subsets, condition: Condition, settings: SampleSettings, *, sigma: float = 1.0) -> Tensor:
    levels = torch.full((len(condition),), sigma)
    return guided(denoise, condition, settings)(torch.zeros(len(condition), 1, 4, 4), levels)[:, 0, 0, 0] / sigma


# Weights of the parts


def test_every_part_adds_what_it_changes_by_its_own_weight() -> None:
    weights = {"attributes": 0.5, "labels": 2.0, "mask": 3.0, "text": -1.0}
    denoise, parts = Subsets(), tuple(weights)
    expected = denoise.value(())
    for number, part in enumerate(parts):
        expected += weights[part] * (denoise.value(parts[: number + 1]) - denoise.value(parts[:number]))
    made = answer(denoise, stated(parts), SampleSettings(guidance=9.0, part_guidance=weights))
    torch.testing.assert_close(made, torch.full((ROWS,), expected))
    assert denoise.rows == [5 * ROWS]  # one call for nothing and the four steps


@pytest.mark.parametrize("weight", [-1.0, 0.0, 0.3, 1.5, 4.0])
def test_equal_weights_are_plain_classifier_free_guidance(weight: float) -> None:
    denoise = Subsets()
    free, asked = denoise.value(()), denoise.value(PARTS)
    made = answer(denoise, stated(PARTS), SampleSettings(guidance=weight))
    torch.testing.assert_close(made, torch.full((ROWS,), free + weight * (asked - free)))
    assert denoise.rows == [ROWS if weight == 0 else 2 * ROWS]


def test_weights_of_one_are_plain_conditioning_to_the_bit() -> None:
    denoise, condition = Subsets(), stated(("labels", "text"))
    x, sigma = torch.randn(ROWS, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0.1, 1.0, 30.0])
    settings = SampleSettings(guidance=7.0, part_guidance={"labels": 1.0, "text": 1.0})
    assert torch.equal(guided(denoise, condition, settings)(x, sigma), denoise(x, sigma, condition))
    assert denoise.rows == [ROWS, ROWS]


def test_one_part_may_be_guided_while_the_others_are_not() -> None:
    denoise, parts = Subsets(), ("labels", "mask")
    made = answer(denoise, stated(parts), SampleSettings(guidance=1.0, part_guidance={"mask": 3.0}))
    before, after = denoise.value(("labels",)), denoise.value(parts)
    torch.testing.assert_close(made, torch.full((ROWS,), before + 3.0 * (after - before)))
    assert denoise.rows == [2 * ROWS]  # nothing at all is not asked for


def test_weights_of_parts_that_nobody_states_change_nothing() -> None:
    denoise, condition = Subsets(), stated(("labels",))
    with_others = answer(denoise, condition, SampleSettings(guidance=2.0, part_guidance={"mask": 5.0, "text": 7.0}))
    assert torch.equal(with_others, answer(denoise, condition, SampleSettings(guidance=2.0)))
    nothing = answer(denoise, stated(()), SampleSettings(guidance=4.0))
    torch.testing.assert_close(nothing, torch.full((ROWS,), denoise.value(())))
    assert denoise.rows == [2 * ROWS, 2 * ROWS, ROWS]


def test_rows_may_state_different_parts() -> None:
    denoise = Subsets()
    condition = Condition.join(stated(("labels",), rows=1), Condition.join(stated(("labels", "text"), rows=1), stated((), rows=1)))
    made = answer(denoise, condition, SampleSettings(guidance=2.0, part_guidance={"text": 5.0}))
    free, labels, both = denoise.value(()), denoise.value(("labels",)), denoise.value(("labels", "text"))
    torch.testing.assert_close(made, torch.tensor([free + 2 * (labels - free), free + 2 * (labels - free) + 5 * (both - labels), free]))


def test_guidance_acts_inside_its_interval_only() -> None:
    denoise, condition = Subsets(), stated(("labels", "text"))
    settings = SampleSettings(guidance=3.0, guidance_from=0.5, guidance_to=2.0)
    free, asked = denoise.value(()), denoise.value(("labels", "text"))
    for sigma in (0.5, 1.0, 2.0):
        torch.testing.assert_close(answer(denoise, condition, settings, sigma=sigma), torch.full((ROWS,), free + 3 * (asked - free)))
    denoise.rows.clear()
    for sigma in (0.49, 2.1, 80.0):
        torch.testing.assert_close(answer(denoise, condition, settings, sigma=sigma), torch.full((ROWS,), asked))
    assert denoise.rows == [ROWS] * 3
    levels = torch.tensor([0.1, 1.0, 80.0])
    mixed = guided(denoise, condition, settings)(torch.zeros(ROWS, 1, 4, 4), levels)[:, 0, 0, 0] / levels
    torch.testing.assert_close(mixed, torch.tensor([asked, free + 3 * (asked - free), asked]))


def test_stated_absent_pushes_the_other_way_than_stated_present() -> None:
    def towards_the_label(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        asked = (condition.labels[:, 0] * 2 - 1).nan_to_num(0.0)
        return 0.5 * x + asked[:, None, None, None] / (1 + sigma.reshape(-1, 1, 1, 1))

    labels = torch.tensor([[1.0], [0.0], [math.nan]])
    condition = Condition(labels=labels, attributes=Condition.unstated(3, num_labels=1).attributes)
    for weight in (0.0, 0.3, 1.0, 1.5, 4.0):
        made = guided(towards_the_label, condition, SampleSettings(guidance=weight))(torch.zeros(3, 1, 1, 1), torch.ones(3)).flatten()
        torch.testing.assert_close(made, weight * torch.tensor([0.5, -0.5, 0.0]))


@pytest.mark.parametrize(("settings", "message"), [
    (SampleSettings(guidance=math.nan), "not a finite number"),
    (SampleSettings(part_guidance={"text": math.inf}), "not a finite number"),
    (SampleSettings(part_guidance={"txt": 2.0}), "did you mean 'text'"),
    (SampleSettings(part_guidance={"prompt": 2.0}), "attributes, image, labels, lesions, mask, text"),
    (SampleSettings(guidance_from=3.0, guidance_to=1.0), "guidance from noise level 3.0 to 1.0"),
])
def test_guidance_that_cannot_work_is_refused(settings: SampleSettings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        guided(Subsets(), stated(("labels",)), settings)


# Composition


def wishes(values: Tensor) -> Condition:
    """Text conditions that each ask for a mean, one a row; NaN asks for nothing."""
    texts = tuple("" if value.isnan() else f"{value.item()}" for value in values)
    return replace(Condition.unstated(len(values), num_labels=1), text=texts)


PRIOR, PRECISION = 0.5, 3.0


def gaussian(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Exact for data N(0, PRIOR^2) of which y = x0 + N(0, 1 / PRECISION) is known to be what the text says."""
    level = sigma.double().reshape(-1, 1, 1, 1)
    known = torch.tensor([float(text or "nan") for text in condition.text or ("",) * len(x)]).double().reshape(-1, 1, 1, 1)
    precision = PRIOR**-2 + level**-2 + PRECISION * ~known.isnan()
    return (x / level**2 + PRECISION * known.nan_to_num(0.0)) / precision


def test_two_gaussian_wishes_compose_to_their_product() -> None:
    """As the noise vanishes, s(x) + sum (s(x | c) - s(x)) is the score of p(x) prod p(c | x), a Gaussian of known mean and precision."""
    first, second, sigma = 0.8, -0.3, 0.02
    both = composed(gaussian, [(wishes(torch.tensor([first])), 1.0), (wishes(torch.tensor([second])), 1.0)], SampleSettings(guidance=1.0))
    x = torch.linspace(-1, 1, 21, dtype=torch.float64).reshape(-1, 1, 1, 1)
    level = torch.full((1,), sigma)
    score = torch.cat([(both(one[None], level) - one) / sigma**2 for one in x]).flatten()
    slope = (score[-1] - score[0]) / 2
    root = x.flatten()[0] - score[0] / slope
    product = PRECISION * (first + second) / (PRIOR**-2 + 2 * PRECISION)
    assert root.item() == pytest.approx(product, rel=0.01)  # where the score is 0 is the mean
    assert -slope.item() == pytest.approx(PRIOR**-2 + 2 * PRECISION, rel=0.01)  # and its slope the precision


def test_not_moves_away_and_each_row_may_have_its_own_sign() -> None:
    wish = wishes(torch.full((3,), 0.9))
    signs = torch.tensor([1.0, -1.0, 0.0])
    made = composed(gaussian, [(wish, signs)], SampleSettings(guidance=2.0))(torch.zeros(3, 1, 1, 1, dtype=torch.float64), torch.ones(3))
    plain = gaussian(torch.zeros(1, 1, 1, 1), torch.ones(1), wish[:1]).item()
    torch.testing.assert_close(made.flatten(), torch.tensor([2 * plain, -2 * plain, 0.0], dtype=torch.float64))


def test_a_composition_of_one_is_guidance_and_terms_that_cancel_are_not_evaluated() -> None:
    denoise, settings, condition = Subsets(), SampleSettings(guidance=2.0, part_guidance={"mask": 3.0}), stated(("labels", "mask"))
    x, sigma = torch.ones(ROWS, 1, 4, 4), torch.ones(ROWS)
    assert torch.equal(composed(denoise, [(condition, 1.0)], settings)(x, sigma), guided(denoise, condition, settings)(x, sigma))
    denoise.rows.clear()
    halves = [(stated(("labels",)), 0.25), (stated(("text",)), 0.75)]
    made = composed(denoise, halves, SampleSettings(guidance=1.0))(x, sigma)[:, 0, 0, 0]
    torch.testing.assert_close(made, torch.full((ROWS,), 0.5 + 0.25 * denoise.value(("labels",)) + 0.75 * denoise.value(("text",))))
    assert denoise.rows == [2 * ROWS]


def test_compositions_that_cannot_work_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        composed(Subsets(), [], SampleSettings())
    with pytest.raises(UsageError, match="same number of rows"):
        composed(Subsets(), [(stated(("labels",)), 1.0), (stated(("labels",), rows=2), 1.0)], SampleSettings())
    with pytest.raises(UsageError, match="1 for AND and -1 for NOT"):
        composed(Subsets(), [(stated(("labels",)), math.nan)], SampleSettings())


# Another model, and a classifier


def test_autoguidance_extrapolates_from_the_worse_model() -> None:
    x, sigma = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.full((4,), 2.0)
    good, weak = (lambda x, sigma: 0.5 * x + 1), (lambda x, sigma: 0.2 * x)
    torch.testing.assert_close(autoguided(good, weak, weight=2.5)(x, sigma), 0.2 * x + 2.5 * (0.3 * x + 1))
    assert autoguided(good, weak, weight=1.0) is good
    with pytest.raises(UsageError, match="not a finite number"):
        autoguided(good, weak, weight=math.nan)


MEAN, SPREAD, SCALE, NOISE, SEEN = 0.3, 0.5, 1.7, 0.4, 1.1


def ideal(x: Tensor, sigma: Tensor) -> Tensor:
    level = sigma.reshape(-1, 1, 1, 1)
    return MEAN + SPREAD**2 / (SPREAD**2 + level**2) * (x - MEAN)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_guidance_by_a_gaussian_classifier_is_the_exact_posterior(sigma: float) -> None:
    """Data N(MEAN, SPREAD^2) and y = SCALE x0 + NOISE n: E[x0 | x, y] has a closed form, and p(y | x) holds the spread of x0 given x."""
    left = SPREAD**2 * sigma**2 / (SPREAD**2 + sigma**2)

    def log_probability(estimate: Tensor) -> Tensor:
        return (-((SEEN - SCALE * estimate) ** 2) / (2 * (NOISE**2 + SCALE**2 * left))).sum(dim=(1, 2, 3))

    with torch.inference_mode():
        x = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        levels = torch.full((5,), sigma)
        made = classifier_guided(ideal, log_probability, weight=1.0)(x, levels)
    precision = SPREAD**-2 + sigma**-2 + SCALE**2 / NOISE**2
    exact = (MEAN / SPREAD**2 + x / sigma**2 + SCALE * SEEN / NOISE**2) / precision
    torch.testing.assert_close(made, exact, atol=1e-5, rtol=1e-5)
    assert not made.requires_grad


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_classifier_guidance_works_on_a_network_in_inference_mode_and_bfloat16(guidance: float) -> None:
    torch.manual_seed(0)
    network, judge = torch.nn.Linear(5, 4), torch.nn.Linear(4, 1)

    def denoise(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        told = torch.cat([x.flatten(1), condition.labels.nan_to_num(0.0)], dim=1)
        raw: Tensor = network(told)
        return raw.to(x).reshape(x.shape)

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        condition = Condition(labels=torch.ones(3, 1), attributes=torch.full((3, 5), math.nan))
        x, sigma = torch.randn(3, 1, 2, 2), torch.ones(3)
        plain = guided(denoise, condition, SampleSettings(guidance=guidance))
        before = plain(x, sigma)
        made = classifier_guided(plain, lambda estimate: judge(estimate.flatten(1))[:, 0], weight=0.5)(x, sigma)
        assert torch.equal(plain(x, sigma), before)  # and the plain denoiser goes on as before
    slope = network.weight[:, :4].T @ judge.weight[0]  # the network is linear in x, whatever it is told
    torch.testing.assert_close((made - before).flatten(1), (0.5 * slope).expand(3, 4), atol=0.02, rtol=0.02)
    assert made.dtype == torch.float32
    assert network.weight.grad is None and judge.weight.grad is None


def test_classifier_guidance_raises_the_probability_and_weight_zero_is_none() -> None:
    def log_probability(estimate: Tensor) -> Tensor:
        return -(estimate - 1).square().sum(dim=(1, 2, 3))

    x, sigma = torch.zeros(1, 1, 2, 2), torch.ones(1)
    reached = [log_probability(classifier_guided(ideal, log_probability, weight=weight)(x, sigma)).item() for weight in (0.0, 0.3, 0.6)]
    assert reached == sorted(reached) and reached[0] < reached[-1]
    assert classifier_guided(ideal, log_probability, weight=0.0) is ideal
    with pytest.raises(UsageError, match="not a finite number"):
        classifier_guided(ideal, log_probability, weight=math.inf)
