"""Outlines laid into a chest: each finding's rule seen on planted outlines, redraws by seed, and what cannot be asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synthorax.data.layout_bank import BankOutline, LayoutBank
from synthorax.data.layouts import Layout, Shape, frame_of, layout_of_polygon, shape_of
from synthorax.editing.layouts import MisplacedError, draw_layouts, draw_placed, place_layout, size_in_lung
from synthorax.errors import UsageError
from synthorax.families.autoencoders.layout import LayoutModel
from synthorax.judges.lungs import LungMasks
from synthorax.protocols import Condition, ModelSpec, SampleSettings
from synthorax.steps.models.recipe import build_model
from trainings import FINDINGS, fresh_objective, randomised, smallest

SHAPE = (200, 200)
FEW = SampleSettings(steps=2, guidance=1.0)


def ellipse(x: float, y: float, across: float, down: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[0:SHAPE[0], 0:SHAPE[1]] + 0.5
    return np.asarray(((columns - x) / across) ** 2 + ((rows - y) / down) ** 2 <= 1)


CHEST = LungMasks(right=ellipse(55, 100, 35, 70)[None], left=ellipse(145, 100, 35, 70)[None], heart=ellipse(108, 120, 32, 28)[None])
RIGHT, LEFT = (20.0, 30.0, 90.0, 170.0), (110.0, 30.0, 180.0, 170.0)


def planted(finding: str, side: str, points: Sequence[Sequence[float]]) -> Layout:
    """A polygon in (u, v) of the lung: 0 to 1 from the mediastinum to the chest wall and from apex to base."""
    frame = frame_of(finding, side, right=RIGHT, left=LEFT)
    return layout_of_polygon(frame.to_image(np.array(points, dtype=float)), frame, shape=SHAPE, finding=finding, side=side)


def block(u: float, v: float, width: float, height: float) -> list[list[float]]:
    return [[u, v], [u + width, v], [u + width, v + height], [u, v + height]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("finding", "fits", "breaks", "said"), [
    ("Nodule", block(0.4, 0.4, 0.2, 0.1), block(0.95, -0.1, 0.2, 0.1), "lies in the"),
    ("Mass", block(0.3, 0.4, 0.4, 0.2), block(0.9, -0.05, 0.25, 0.2), "lies in the"),
    ("Consolidation", block(0.3, 0.4, 0.6, 0.4), block(1.05, 0.0, 0.1, 0.4), "lies in the"),
    ("Effusion", block(0.3, 0.7, 0.4, 0.3), block(0.4, 0.02, 0.2, 0.2), "base"),
    ("Effusion", block(0.1, 0.1, 0.9, 0.9), block(0.45, 0.05, 0.15, 0.9), "apex and covers less than a third"),
    ("Pneumothorax", block(0.85, 0.2, 0.2, 0.5), block(0.4, 0.4, 0.2, 0.2), "chest wall or the apex"),
    ("Pneumothorax", block(0.3, 0.0, 0.4, 0.1), block(0.0, 0.4, 0.2, 0.2), "chest wall or the apex"),
    ("Pleural_Thickening", block(0.85, 0.3, 0.2, 0.3), block(0.4, 0.4, 0.2, 0.2), "lung's border")])
def test_each_rule_lets_what_fits_pass_and_stops_what_does_not(finding: str, fits: list[list[float]], breaks: list[list[float]], said: str,
                                                               side: str) -> None:
    mask = place_layout(planted(finding, side, fits), CHEST)
    lung, other = (CHEST.right[0], CHEST.left[0]) if side == "right" else (CHEST.left[0], CHEST.right[0])
    assert mask.any() and not (mask & other).any()
    assert (mask & lung).sum() >= 0.6 * mask.sum()
    if finding in ("Nodule", "Mass", "Consolidation"):
        assert not (mask & ~lung).any()
    with pytest.raises(MisplacedError, match=said):
        place_layout(planted(finding, side, breaks), CHEST)


@pytest.mark.parametrize("side", ["right", "left"])
def test_fluid_sinks_to_the_base_and_stays_high_at_the_wall(side: str) -> None:
    """Drawn as a block in the middle of the lower lung."""
    mask = place_layout(planted("Effusion", side, block(0.4, 0.55, 0.3, 0.25)), CHEST)
    lung = (CHEST.left if side == "left" else CHEST.right)[0]
    columns = np.flatnonzero(lung.any(0))
    outwards = columns if side == "left" else columns[::-1]
    lateral = outwards[len(outwards) // 2:]
    assert (mask & lung)[:, lateral].any(0).all() and not mask[: np.flatnonzero(lung.any(1))[0] + lung.any(1).sum() // 3].any()
    for column in lateral:
        fluid, all_of_it = np.flatnonzero(mask[:, column] & lung[:, column]), np.flatnonzero(lung[:, column])
        assert fluid[-1] == all_of_it[-1] and len(fluid) == fluid[-1] - fluid[0] + 1, "no lung below the fluid"
    levels = [np.flatnonzero(mask[:, column])[0] for column in lateral[:-3]]
    assert levels == sorted(levels, reverse=True), "and it never falls towards the wall"


@pytest.mark.parametrize("side", ["right", "left"])
def test_air_lies_between_the_lung_and_the_wall(side: str) -> None:
    mask = place_layout(planted("Pneumothorax", side, block(0.6, 0.1, 0.38, 0.5)), CHEST)
    lung = (CHEST.left if side == "left" else CHEST.right)[0]
    for row in np.flatnonzero(mask.any(1))[3:-3]:
        inside = np.flatnonzero(lung[row])
        outermost = inside[-1] if side == "left" else inside[0]
        assert mask[row, outermost], "no lung between the air and the wall"


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_thin_pneumothorax_away_from_the_wall_stays_thin_there(side: str) -> None:
    """A strip that is 0.06 of the lung's width thick, 0.05 to 0.2 of it away from the wall."""
    mask = place_layout(planted("Pneumothorax", side, block(0.84, 0.3, 0.06, 0.35)), CHEST)
    assert mask.sum() < 1.5 * 0.06 * 70 * 0.35 * 140


def test_an_outline_that_lies_just_outside_is_shifted_by_as_little_as_it_needs() -> None:
    beside = planted("Nodule", "left", block(0.89, 0.45, 0.16, 0.1))
    mask = place_layout(beside, CHEST)
    assert not (mask & ~CHEST.left[0]).any()
    shifted = float(np.nonzero(mask)[1].mean()) - (LEFT[0] + 0.97 * 70)
    assert -0.11 * 70 < shifted < -0.02 * 70


def test_a_large_heart_lies_between_the_lungs() -> None:
    assert place_layout(planted("Cardiomegaly", "", block(0.28, 0.4, 0.5, 0.5)), CHEST).sum() > CHEST.heart.sum()
    for points, said in ((block(0.7, 0.4, 0.3, 0.5), "between the lungs"), (block(0.4, 0.75, 0.2, 0.2), "over the heart"),
                         (block(0.15, -0.15, 0.7, 1.3), "no heart|lies in")):
        with pytest.raises(MisplacedError, match=said):
            place_layout(planted("Cardiomegaly", "", points), CHEST)


def test_a_lung_that_was_not_found_is_an_error() -> None:
    with pytest.raises(MisplacedError, match="no left lung was found"):
        place_layout(planted("Mass", "left", block(0.3, 0.4, 0.4, 0.2)), replace(CHEST, left=np.zeros((1, *SHAPE), dtype=bool)))


def bank_of(*layouts: Layout) -> LayoutBank:
    return LayoutBank(path=Path("bank"), outlines=tuple(BankOutline(layout=one, size=shape_of(one).size) for one in layouts))


def test_outlines_are_drawn_again_until_one_fits_or_an_error_says_why() -> None:
    bad, good = planted("Nodule", "left", block(0.95, -0.15, 0.2, 0.1)), planted("Nodule", "left", block(0.4, 0.4, 0.2, 0.1))
    placed = [draw_placed(bank_of(bad, good), "Nodule", CHEST, side="left", seed=seed)[1] for seed in range(5)]
    assert all((mask & CHEST.left[0]).sum() == mask.sum() > 0 for mask in placed)
    again = draw_placed(bank_of(bad, good), "Nodule", CHEST, side="left", seed=3)[1]
    assert np.array_equal(again, placed[3]) and not np.array_equal(placed[3], placed[4])
    with pytest.raises(MisplacedError, match=r"no outline of Nodule in 4 fits these lungs; the last one.*lies in the left lung"):
        draw_placed(bank_of(bad), "Nodule", CHEST, side="left", seed=0, tries=4)


def test_sizes_of_lesions_become_sizes_in_the_lung() -> None:
    """A lesion that covers a quarter of the lung's box."""
    area = 70 * 140 / 4
    of_image = 2 * math.sqrt(area / (SHAPE[0] * SHAPE[1]))
    assert size_in_lung(of_image, finding="Mass", side="left", lungs=CHEST) == pytest.approx(0.5, rel=0.03)
    assert math.isnan(size_in_lung(math.nan, finding="Mass", side="left", lungs=CHEST))
    with pytest.raises(MisplacedError, match="larger than the lung"):
        size_in_lung(1.0, finding="Mass", side="left", lungs=CHEST)


def tiny() -> LayoutModel:
    spec: ModelSpec = fresh_objective(smallest("layout")).model.spec  # type: ignore[assignment, union-attr]
    model = build_model(spec)
    randomised(model)
    assert isinstance(model, LayoutModel)
    return model.eval()


def test_a_model_is_asked_for_finding_side_and_size_and_rows_do_not_depend_on_their_neighbours() -> None:
    model = tiny()
    asked: list[Condition] = []
    plain = model.sample

    def listening(condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> torch.Tensor:
        assert condition is not None
        asked.append(condition)
        return plain(condition, seeds, settings)

    model.sample = listening  # type: ignore[method-assign]
    made = draw_layouts(model, ["Mass", "Effusion"], ["left", "right"], [0.4, math.nan], [1, 2], settings=FEW)
    assert [(one.finding, one.side) for one in made] == [("Mass", "left"), ("Effusion", "right")] and all(one.mask.any() for one in made)
    assert asked[0].labels.tolist() == [[0.0, 1.0], [1.0, 0.0]] and FINDINGS == ("Effusion", "Mass")
    lesions = asked[0].lesions
    assert lesions is not None and lesions[0, 1, :2].tolist() == [1.0, pytest.approx(0.4)] and lesions[1, 0, 0] == 0.0
    alone = draw_layouts(model, ["Effusion"], ["right"], [math.nan], [2], settings=FEW)[0]
    np.testing.assert_allclose(alone.grid, made[1].grid, atol=1e-4)
    either = draw_layouts(model, ["Mass"] * 20, [""] * 20, [math.nan] * 20, range(20), settings=FEW)
    assert {one.side for one in either} == {"left", "right"}


def test_what_cannot_be_drawn_is_refused() -> None:
    model = tiny()
    for findings, sides, sizes, said in (
            (["Hernia"], ["left"], [0.2], "knows no outline of 'Hernia'; choose from: Effusion, Mass"),
            (["Effusio"], ["left"], [0.2], "did you mean 'Effusion'.*it knows Effusion, Mass"), (["Mass"], ["up"], [0.2], "the patient's"),
            (["Mass"], ["left"], [1.2], "at most 1"), (["Mass"], ["left"], [0.0], "above 0"), (["Mass"], ["left"], [], "one a row")):
        with pytest.raises(UsageError, match=said):
            draw_layouts(model, findings, sides, sizes, [1], settings=FEW)


def test_a_shape_lists_what_is_judged() -> None:
    assert set(Shape.__dataclass_fields__) == {"size", "x", "y", "elongation", "solidity", "roughness"}
