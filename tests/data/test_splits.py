"""Splits share no patient and give each side its part of the rare findings; the fingerprint warns of what misleads."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from synthorax.data.dataset import read_dataset
from synthorax.data.fingerprint import fingerprint
from synthorax.data.splits import SPLITS, cap_images, split_patients
from synthorax.errors import InputError, UsageError
from synthorax.types import LabelPolicy, Stated, Study

NIH = Path(__file__).parents[3] / "shared" / "data" / "open" / "nih"


def image(number, patient, *findings, **rest):
    labels = dict.fromkeys(findings, Stated.PRESENT)
    return Study(file_name=f"{number}.png", patient_id=patient, **{"labels": labels} | rest)


def population(num_rare=10, num_common=60, num_normal=130):
    kinds = [["Hernia", "Effusion"]] * num_rare + [["Effusion"]] * num_common + [["No Finding"]] * num_normal
    return [image(i, f"p{i // 2 if i % 7 == 0 else i}", *kind) for i, kind in enumerate(kinds)]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["", "Mass", "Hernia", "No Finding"])), min_size=1, max_size=60),
       st.integers(0, 5), st.sampled_from([(0.7, 0.1, 0.2), (0.5, 0.25, 0.25), (0.8, 0.0, 0.2), (1.0, 0.0, 0.0)]))
def test_no_patient_is_on_two_sides_and_empty_shares_stay_empty(rows, seed, fractions):
    studies = [image(i, f"p{patient}", *filter(None, [finding])) for i, (patient, finding) in enumerate(rows)]
    splits = split_patients(studies, fractions=fractions, seed=seed)
    sides = {(study.patient_id, split) for study, split in zip(studies, splits, strict=True)}
    assert len(sides) == len({study.patient_id for study in studies})
    sizes = Counter(split for _, split in sides)
    for split, share in zip(SPLITS, fractions, strict=True):
        assert abs(sizes[split] - share * len({study.patient_id for study in studies})) < 2
        assert share > 0 or sizes[split] == 0


def test_each_side_gets_its_part_of_the_rarest_finding():
    studies = population()
    splits = split_patients(studies)
    rare = Counter(split for study, split in zip(studies, splits, strict=True) if "Hernia" in study.labels)
    assert rare["train"] in (6, 7, 8) and rare["val"] in (1, 2) and rare["test"] in (1, 2, 3)


def test_the_seed_decides_and_the_order_of_rows_does_not():
    studies = population()
    splits = split_patients(studies, seed=4)
    assert splits == split_patients(studies, seed=4) != split_patients(studies, seed=5)
    backwards = dict(zip([study.patient_id for study in studies[::-1]], split_patients(studies[::-1], seed=4), strict=True))
    assert [backwards[study.patient_id] for study in studies] == splits


def test_stated_splits_are_kept_and_count():
    studies = [image(i, f"p{i}", split="test" if i < 20 else "") for i in range(100)]
    splits = split_patients(studies)
    assert set(splits[:20]) == {"test"} and Counter(splits) == {"train": 70, "val": 10, "test": 20}
    follow_up = [image(0, "a", split="val"), image(1, "a")]
    assert split_patients(follow_up) == ["val", "val"]


@pytest.mark.parametrize(("studies", "message"), [
    ([image(0, "a", split="train"), image(1, "b"), image(2, "a", split="test")], r"labels.csv row 4.*'train' in row 2"),
    ([image(0, "a"), image(1, "")], "row 3: '1.png' has no patient_id"),
    ([image(0, "a", split="dev")], "row 2: split 'dev'"),
    ([image(0, "a"), image(1, "", origin="synthetic", split="test")], "row 3: a synthetic image is in the split 'test'"),
])
def test_what_would_leak_is_refused_with_its_row(studies, message):
    with pytest.raises(InputError, match=message):
        split_patients(studies, file="labels.csv")


def test_synthetic_rows_train_and_do_not_change_the_real_split():
    studies = population()
    synthetic = [image(1000 + i, "", "Hernia", origin="synthetic") for i in range(50)]
    assert split_patients(studies + synthetic) == split_patients(studies) + ["train"] * 50


@pytest.mark.parametrize("fractions", [(0.7, 0.3), (0.5, 0.1, 0.1), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1), (math.nan, 0.5, 0.5)])
def test_shares_that_do_not_add_up_are_refused(fractions):
    with pytest.raises(UsageError, match="split"):
        split_patients([image(0, "a")], fractions=fractions)


def test_a_patient_with_very_many_images_trains():
    studies = [image(i, "many" if i < 20 else f"p{i}", "Hernia") for i in range(40)]
    for seed in range(10):
        assert set(split_patients(studies, seed=seed)[:20]) == {"train"}


def test_cap_keeps_the_images_with_the_rarest_finding():
    many = [image(i, "many", "Hernia" if i in (3, 17) else "No Finding") for i in range(20)]
    others = [image(100 + i, f"p{i}", "Effusion") for i in range(5)]
    keep = cap_images(many + others, ["train"] * 25, images_per_patient=5)
    assert sum(keep[:20]) == 5 and keep[3] and keep[17] and all(keep[20:])
    assert keep == cap_images(many + others, ["train"] * 25, images_per_patient=5)
    assert all(cap_images(many, ["test"] * 20, images_per_patient=5))


def test_uncertain_counts_as_the_policy_says():
    studies = [image(i, "many", "Effusion" if i else "Hernia") for i in range(6)]
    studies[0] = image(0, "many", labels={"Hernia": Stated.UNCERTAIN})
    studies += [image(10 + i, f"p{i}", "Effusion") for i in range(5)]
    kept = [cap_images(studies, ["train"] * 11, images_per_patient=1, label_policy=LabelPolicy(uncertain=uncertain))[0]
            for uncertain in ("positive", "negative")]
    assert kept == [True, False]


def with_views(share_ap_ill, share_ap_well, *, num=200, images_each=1):
    ill = [("Mass", "AP" if i < share_ap_ill * num else "PA") for i in range(num)]
    well = [("No Finding", "AP" if i < share_ap_well * num else "PA") for i in range(num)]
    return [image(f"{i}-{j}", f"p{i}", finding, view=view) for i, (finding, view) in enumerate(ill + well) for j in range(images_each)]


def test_view_that_gives_the_finding_away_is_warned_of():
    found = fingerprint(with_views(0.7, 0.4), ["Mass"])
    assert any("view confounds Mass: 70 % AP with it, 40 % without" in warning for warning in found["warnings"])
    assert not any("confounds" in warning for warning in fingerprint(with_views(0.45, 0.4), ["Mass"])["warnings"])  # small
    assert not any("confounds" in warning for warning in fingerprint(with_views(0.7, 0.4, num=10), ["Mass"])["warnings"])  # chance


def test_repeated_images_of_few_patients_are_no_evidence():
    assert not any("confounds" in warning for warning in fingerprint(with_views(0.7, 0.4, num=10, images_each=30), ["Mass"])["warnings"])


def test_chi_square_agrees_with_scipy_and_holm_multiplies():
    studies = with_views(0.5, 0.4)
    tests = fingerprint(studies, ["Mass", "No Finding"])["confounders"]
    expected = chi2_contingency([[100, 100], [80, 120]], correction=False).pvalue
    assert [test["p"] for test in tests] == pytest.approx([expected, expected], rel=1e-9)
    assert [test["p_holm"] for test in tests] == pytest.approx([2 * expected, 2 * expected])


def test_counts_are_those_of_images_and_patients():
    studies = [image(0, "a", "Mass", "Edema", sex="M", age_years=40), image(1, "a", "Mass", view="AP"), image(2, "b", labels={}),
               image(3, "c", labels={"Mass": Stated.UNCERTAIN}), image(4, "d", "No Finding")]
    found = fingerprint(studies, ["Mass", "Edema"], image_sizes=[(20, 10)] * 5, bit_depths=[8, 8, 8, 8, 16])
    assert found["findings"]["Mass"] == {"present": {"images": 2, "patients": 1}, "absent": {"images": 1, "patients": 1},
                                         "uncertain": {"images": 1, "patients": 1}, "not_stated": {"images": 1, "patients": 1},
                                         "prevalence": pytest.approx(2 / 3, abs=1e-4)}
    assert found["co_occurrence"]["images"] == [[2, 1], [1, 1]]
    assert found["views"] == {"not stated": 4, "AP": 1} and found["image_sizes"] == {"10 x 20": 5}
    assert found["bit_depths"] == {"8": 4, "16": 1} and found["ages_years"]["stated"] == 1


def test_scarce_constant_and_unstated_findings_are_warned_of():
    studies = [image(i, f"p{i}", "Mass", *(["Hernia"] if i < 3 else []), *(["Edema"] if i < 12 else [])) for i in range(40)]
    warnings = "\n".join(fingerprint(studies, ["Mass", "Hernia", "Edema"])["warnings"])
    assert "Hernia: only 3 images of 3 patients" in warnings and "Edema: only 12 images" in warnings
    assert "Mass: every image that states it has it" in warnings
    assert "Nodule: no image states" in fingerprint([image(0, "a")], ["Nodule"])["warnings"][0]


def test_a_split_without_the_finding_is_warned_of():
    studies = [image(i, f"p{i}", "Mass" if i % 2 and i < 30 else "No Finding", split="train" if i < 30 else "test") for i in range(40)]
    warnings = fingerprint(studies, ["Mass"])["warnings"]
    assert "the split val is empty" in warnings and "Mass: no image in test has it" in warnings


@pytest.mark.images
@pytest.mark.skipif(not NIH.exists(), reason="the real images are not beside the checkout")
def test_real_images_warn_that_view_confounds_no_finding():
    dataset = read_dataset(NIH)
    warnings = fingerprint(dataset.studies, dataset.findings)["warnings"]
    assert any(warning.startswith("view confounds No Finding") for warning in warnings)
    splits = np.array(split_patients(dataset.studies))
    rare = np.array(["Pneumothorax" in study.labels for study in dataset.studies])
    patients = np.array([study.patient_id for study in dataset.studies])
    counts = [len(set(patients[rare & (splits == split)])) for split in SPLITS]
    assert counts[1] >= 3 and counts[2] >= 8 and sum(counts) == len(set(patients[rare]))
