"""A reader study's file: what is refused, numbers worked out by hand, and panels built to succeed and to fail."""

import csv
import math

import numpy as np
import pytest
from scipy.stats import binom

from synthorax.errors import InputError
from synthorax.evaluation.dimensions.clinical_acceptability import reader_study
from synthorax.evaluation.dimensions.readings import read_readings
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.report.record import Report
from synthorax.evaluation.statistics.agreement import (
    balanced_share,
    fleiss_kappa,
    krippendorff_alpha,
    mcnemar,
    mean_change,
    share_over_readers_and_images,
    two_way_reach,
)
from synthorax.evaluation.statistics.roc import wilson
from synthorax.types import ImageSet, Study

FINDINGS = ("Effusion", "Mass")


def images(kind, num):
    """Images `real-0.png` and so on, the first half with Effusion, none with Mass."""
    studies = tuple(Study(file_name=f"{kind}-{number}.png", patient_id=f"{kind}{number}", origin=kind) for number in range(num))
    labels = np.array([[float(number < num // 2), 0.0] for number in range(num)], dtype=np.float32)
    return ImageSet(pixels=np.zeros((num, 4, 4), dtype=np.uint8), studies=studies, findings=FINDINGS, labels=labels, digest=kind)


REAL, MADE = images("real", 20), images("synthetic", 20)
SIDES = RealImages(train=REAL.take(range(10)), held_out=REAL.take(range(10, 20)))
ALL = [study.file_name for study in (*REAL.studies, *MADE.studies)]


def read(path, rows, *, columns=None):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return read_readings(path, real=REAL.studies, synthetic=MADE.studies, findings=FINDINGS)


def panel(*readers, **more):
    """Rows of readers, each a function from image to `real` or `synthetic`; `more` are functions from image to another column."""
    return [{"reader": f"R{number}", "image": image, "said": says(image), **{name: value(image) for name, value in more.items()}}
            for number, says in enumerate(readers) for image in ALL]


def truth(image):
    return image.partition("-")[0]


def suspicious(_):
    return "synthetic"


def study(path, rows):
    return reader_study(read(path / "r.csv", rows), SIDES, MADE)


def scores(dimension, group="all"):
    return {score.metric: score for score in dimension.scores if score.group == group}


def diagnoses(*answers):
    """Assisted readings: (reader, image, truth, alone, assisted)."""
    return [{"reader": reader, "image": image, "finding": "Effusion", "assisted": way, "answer": given, "truth": there}
            for reader, image, there, *both in answers for way, given in enumerate(both)]


# Agreement, by hand


def test_fleiss_kappa_by_hand():
    """P_i = 1, 1, 1/3, 1/3 with a mean of 2/3; both categories hold half of the readings, so chance is 1/2: (2/3 - 1/2) / (1/2)."""
    kappa = fleiss_kappa([[3, 0], [0, 3], [2, 1], [1, 2]])
    assert kappa.value == pytest.approx(1 / 3)
    assert kappa.low < 1 / 3 < kappa.high == 1
    # Three categories: P_i = 1, 1/3, 0 with a mean of 4/9; shares 6/9, 2/9, 1/9, so chance is 41/81.
    assert fleiss_kappa([[3, 0, 0], [2, 1, 0], [1, 1, 1]]).value == pytest.approx((4 / 9 - 41 / 81) / (1 - 41 / 81))
    assert fleiss_kappa([[3, 0], [0, 2]]).value == 1  # unlike numbers of readers


def test_an_image_of_one_reader_says_nothing_of_agreement():
    assert fleiss_kappa([[3, 0], [0, 3], [2, 1], [1, 2], [1, 0]]) == fleiss_kappa([[3, 0], [0, 3], [2, 1], [1, 2]])
    with pytest.raises(InputError, match="all readings are the same"):
        fleiss_kappa([[3, 0], [3, 0]])
    with pytest.raises(InputError, match="two images"):
        fleiss_kappa([[1, 0], [0, 1]])


def test_krippendorff_alpha_of_his_own_example():
    """Four observers, twelve units, gaps: 0.849 for interval data (Krippendorff 2011)."""
    gap = math.nan
    table = [[1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
             [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap]]
    assert krippendorff_alpha(np.transpose(table)).value == pytest.approx(0.849, abs=5e-4)


def test_krippendorff_alpha_by_hand():
    """Ratings 1 2 and 4 5: squared differences within images 1, over all 12 ordered pairs 2 (1 + 9 + 16 + 4 + 9 + 1) / 12 = 20/3."""
    assert krippendorff_alpha([[1, 2], [4, 5]]).value == pytest.approx(1 - 3 / 20)
    assert krippendorff_alpha([[1, 5], [5, 1]]).value == pytest.approx(1 - 16 / (8 * 16 / 12))  # worse than chance
    with pytest.raises(InputError, match="all readings are the same"):
        krippendorff_alpha([[3, 3], [3, 3]])


# Intervals over readers and images


def test_one_reader_has_the_interval_of_a_mean():
    """With one reader the reach is t times the standard error of the mean over images."""
    values = np.array([1.0, 1, 1, 0, 0, 1, 0, 1])
    reach = two_way_reach((values - values.mean()) / 8, ["a"] * 8, range(8))
    assert reach == pytest.approx(2.3646 * values.std(ddof=1) / math.sqrt(8), rel=1e-4)


def test_readers_who_are_copies_count_once():
    """Five readers who say the same: the images alone decide, and the interval is as wide as that of one of them."""
    values = np.array([1.0, 1, 1, 0, 0, 1, 0, 1])
    one = share_over_readers_and_images(values, ["a"] * 8, range(8))
    five = share_over_readers_and_images(np.tile(values, 5), np.repeat(range(5), 8), np.tile(range(8), 5))
    assert (five.value, five.low, five.high) == pytest.approx((one.value, one.low, one.high))


def test_interval_holds_the_truth_for_other_readers_and_images():
    """Readers and images that differ: 95 % of intervals hold the mean over all; as if readings were independent, far fewer would."""
    rng = np.random.default_rng(0)
    readers, seen = np.repeat(np.arange(4), 40), np.tile(np.arange(40), 4)
    whole = float(np.mean(1 / (1 + np.exp(-rng.normal(0.4, 1.0, size=100_000)))))
    held = naive = 0
    for _ in range(200):
        logit = 0.4 + 0.6 * rng.normal(size=4)[readers] + 0.8 * rng.normal(size=40)[seen]
        said = rng.random(160) < 1 / (1 + np.exp(-logit))
        found = share_over_readers_and_images(said, readers, seen)
        held += found.low <= whole <= found.high
        low, high = wilson(int(said.sum()), 160)
        naive += low <= whole <= high
    assert held >= 180
    assert naive < 160


def test_a_perfect_reader_still_has_an_interval():
    found = share_over_readers_and_images(np.ones(60), np.repeat(range(3), 20), np.tile(range(20), 3))
    assert (found.value, found.low, found.high) == (1.0, *wilson(20, 20))
    opposed = share_over_readers_and_images([1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1])
    assert opposed.low < 0.5 < opposed.high
    still = mean_change(np.zeros(8), [0] * 8, range(8))
    assert still.low == -still.high < 0 == still.value


def test_balanced_share_does_not_reward_the_frequent_kind():
    kind = np.arange(20) < 18
    assert balanced_share(kind, kind, [0] * 20, range(20)).value == 0.5  # who always calls images synthetic is right in 18 of 20
    assert share_over_readers_and_images(kind, [0] * 20, range(20)).value == 0.9


def test_mcnemar_is_a_binomial_of_the_pairs_that_differ():
    before, after = [1] * 6 + [1] * 2 + [0] * 9, [1] * 6 + [0] * 2 + [1] * 9
    assert mcnemar(before, after) == (2, 9, pytest.approx(2 * binom.cdf(2, 11, 0.5)))
    assert mcnemar([1, 0], [1, 0]) == (0, 0, 1.0)


# Panels


def test_readers_who_see_through_every_image(tmp_path):
    dimension = study(tmp_path, panel(truth, truth, truth))
    found = scores(dimension)
    assert found["turing_accuracy"].value == found["turing_sensitivity"].value == 1
    assert found["agreement_on_origin"].value == 1
    assert found["turing_accuracy"].low == pytest.approx(wilson(40, 40)[0])
    alone = scores(dimension, "reader R1")["turing_accuracy"]
    assert "p < 0.001" in alone.note
    assert alone.low == pytest.approx(0.025 ** (1 / 40))  # Clopper and Pearson (1934) at 40 of 40
    assert dimension.extra["verdict"]["real_or_synthetic"].startswith("told apart")
    assert "acceptability" in dimension.extra["not_measured"]


def test_calling_everything_synthetic_is_no_skill(tmp_path):
    dimension = study(tmp_path, panel(suspicious, suspicious, suspicious))
    found = scores(dimension)
    assert found["turing_accuracy"].value == found["balanced_turing_accuracy"].value == 0.5
    assert found["turing_sensitivity"].value == found["turing_sensitivity"].floor == 1
    assert "p = 1.000" in scores(dimension, "reader R0")["turing_accuracy"].note
    assert dimension.extra["verdict"]["real_or_synthetic"].startswith("no evidence")
    assert "the same" in dimension.extra["not_measured"]["agreement_on_origin"]


def test_readers_who_toss_coins(tmp_path):
    rng = np.random.default_rng(3)

    def coin(_):
        return ("real", "synthetic")[rng.integers(2)]

    found = scores(study(tmp_path, panel(coin, coin, coin, coin)))
    assert abs(found["turing_accuracy"].value - 0.5) < 0.1
    assert found["turing_accuracy"].low < 0.5 < found["turing_accuracy"].high
    kappa = found["agreement_on_origin"]
    assert kappa.low < 0 < kappa.high < 0.3


def test_confidence_tells_more_than_the_answer(tmp_path):
    """Right where sure, wrong where not: half of the answers are right, but the sure ones set the order."""
    def half(image):
        return truth(image) if int(image[:-4].partition("-")[2]) % 2 else {"real": "synthetic", "synthetic": "real"}[truth(image)]

    dimension = study(tmp_path, panel(half, half, half, confidence=lambda image: 5 if half(image) == truth(image) else 1))
    alone = scores(dimension, "reader R0")
    assert alone["turing_accuracy"].value == 0.5
    assert alone["turing_auroc"].value == 0.75


def test_acceptable_by_majority_and_by_finding(tmp_path):
    """Two of three accept synthetic images with Effusion, one of three the others; all accept real images."""
    rows = panel(truth, truth, truth)
    for row in rows:
        number = int(row["image"][:-4].partition("-")[2])
        yes = 3 if truth(row["image"]) == "real" else 2 if number < 10 else 1
        row["acceptable"] = 4 if int(row["reader"][1]) < yes else 3
    dimension = study(tmp_path, rows)
    whole, effusion = scores(dimension)["acceptable_images"], scores(dimension, "Effusion")["acceptable_images"]
    assert (whole.value, whole.low, whole.high, whole.floor, whole.n_synthetic) == (0.5, *wilson(10, 20), 1.0, 20)
    assert (effusion.value, effusion.n_synthetic, effusion.n_real, effusion.floor) == (1.0, 10, 10, 1.0)
    assert scores(dimension)["acceptable_readings"].value == 0.5
    verdict = dimension.extra["verdict"]
    assert verdict["acceptable_images, all"].startswith("not acceptable")
    assert verdict["acceptable_images, Effusion"].startswith("undecided")  # ten of ten allow for 72 %


def test_half_is_no_majority_and_two_readers_are_none(tmp_path):
    rows = panel(truth, truth, truth, truth, acceptable=lambda image: 5)
    for row in rows:
        row["acceptable"] = 5 if row["reader"] in ("R0", "R1") else 1
        if row["image"] == "synthetic-0.png" and row["reader"] in ("R2", "R3"):
            row["acceptable"] = ""  # two readers, both pleased
    found = scores(study(tmp_path, rows))["acceptable_images"]
    assert (found.value, found.n_synthetic) == (0, 19)


def test_a_verdict_takes_three_readers(tmp_path):
    rows = panel(truth, truth, acceptable=lambda image: 5)
    dimension = study(tmp_path, rows)
    assert dimension.status == "skipped"
    assert "at least 3" in dimension.reason
    assert dimension.extra["verdict"].startswith("skipped")
    assert scores(dimension)["turing_accuracy"].value == scores(dimension)["acceptable_readings"].value == 1
    assert "acceptable_images" not in scores(dimension)
    assert study(tmp_path, panel(truth, truth, truth, acceptable=lambda image: 5)).status == "measured"


def test_the_finding_asked_for_is_seen_or_not(tmp_path):
    """Readers see Effusion on every synthetic image, and on real images where it is."""
    def sees(image):
        return int(truth(image) == "synthetic" or int(image[:-4].partition("-")[2]) < 10)

    dimension = study(tmp_path, panel(truth, truth, truth, finding=lambda image: "pleural effusion", finding_seen=sees))
    found = scores(dimension, "Effusion")
    assert (found["requested_finding_seen"].value, found["requested_finding_seen"].floor) == (1, 1)
    assert (found["absent_finding_seen"].value, found["absent_finding_seen"].floor) == (1, 0)


def test_agreement_on_acceptability_follows_the_readers(tmp_path):
    alike = study(tmp_path, panel(truth, truth, truth, acceptable=lambda image: 1 + int(image[:-4].partition("-")[2]) % 5))
    assert scores(alike)["agreement_on_acceptability"].value == 1
    rng = np.random.default_rng(0)
    apart = study(tmp_path, panel(truth, truth, truth, acceptable=lambda image: rng.integers(1, 6)))
    found = scores(apart)["agreement_on_acceptability"]
    assert found.low < 0 < found.high < 0.5


def test_assisted_against_unassisted(tmp_path):
    """Six readings of three images with Effusion: two become right, none wrong; without it nothing changes. One pair is incomplete."""
    with_it = [("A", "real-0.png", 1, 0, 1), ("A", "real-1.png", 1, 1, 1), ("A", "real-2.png", 1, 0, 0),
               ("B", "real-0.png", 1, 1, 1), ("B", "real-1.png", 1, 0, 1), ("B", "real-2.png", 1, 1, 1)]
    without = [("A", "real-11.png", 0, 0, 0), ("B", "real-11.png", 0, 1, 1)]
    rows = diagnoses(*with_it, *without, ("B", "real-12.png", 0, 0))
    dimension = study(tmp_path, [{"said": "", **row} for row in rows])
    found = scores(dimension, "Effusion")
    assert found["sensitivity_unassisted"].value == pytest.approx(3 / 6)
    assert found["sensitivity_assisted"].value == pytest.approx(5 / 6)
    gain = found["sensitivity_gain"]
    assert gain.value == pytest.approx(2 / 6)
    assert "2 of 6 pairs became right, 0 wrong; p = 0.500" in gain.note
    assert gain.n_real == 3
    assert found["specificity_unassisted"].value == found["specificity_assisted"].value == 0.5 and found["specificity_gain"].value == 0
    assert "1 readings" in dimension.extra["not_measured"]["assisted_reading"]
    assert dimension.status == "skipped"  # whether images are accepted was not asked


def test_the_page_shows_a_reader_study(tmp_path):
    dimension = study(tmp_path, panel(truth, suspicious, truth, acceptable=lambda image: 5))
    report = Report(inputs={"real": {"digest": "a"}, "synthetic": {"digest": "b"}}, dimensions={"clinical_acceptability": dimension})
    page = report.write(tmp_path / "out").read_text()
    assert "Turing accuracy" in page
    assert "reader R1" in page
    assert "some readers tell them apart: R0, R2" in page  # with one of three who cannot: other readers may be like that one
    assert "How often each reader" in page
    assert Report.load(tmp_path / "out").to_dict() == report.to_dict()


def test_an_unbalanced_pack_is_said_to_be_one(tmp_path):
    rows = [row for row in panel(suspicious, suspicious, suspicious) if truth(row["image"]) == "synthetic" or row["image"] < "real-11"]
    dimension = study(tmp_path, rows)
    assert scores(dimension)["turing_accuracy"].value > 0.8
    assert scores(dimension)["balanced_turing_accuracy"].value == 0.5
    assert "balanced accuracy" in dimension.extra["mix"]


# What is refused


def spoilt(row, **changes):
    rows = panel(truth, truth, truth, acceptable=lambda image: 4)
    rows[row - 2] |= changes
    return rows


@pytest.mark.parametrize(("changes", "message"), [
    ({"image": "real-99.png"}, r"row 4: no image 'real-99.png'.*did you mean 'real-9.png'"),
    ({"image": "zzz"}, r"row 4: no image 'zzz'.*preparation left out"),
    ({"image": ""}, r"row 4: 'image' is empty"),
    ({"reader": ""}, r"row 4: 'reader' is empty"),
    ({"said": "fake"}, r"row 4: said 'fake'; write real or synthetic"),
    ({"said": ""}, r"row 4: 'said' is empty"),
    ({"acceptable": "6"}, r"row 4: 'acceptable' is '6'; write a whole number from 1 to 5"),
    ({"acceptable": "4.5"}, r"row 4: 'acceptable' is '4.5'"),
    ({"confidence": "0"}, r"row 4: 'confidence' is '0'"),
    ({"finding": "Efusion"}, r"row 4: unknown finding 'Efusion'; did you mean 'Effusion'"),
    ({"finding_seen": "1"}, r"row 4: 'finding_seen' is filled in but not which finding"),
    ({"finding": "Mass", "finding_seen": "yes"}, r"row 4: 'finding_seen' is 'yes'; write 1"),
    ({"assisted": "1"}, r"row 4: 'said' stands beside 'assisted'"),
])
def test_a_bad_row_is_refused_by_its_number(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "r.csv", spoilt(4, **changes))


def test_an_image_read_twice_is_refused(tmp_path):
    rows = panel(truth, truth, truth)
    with pytest.raises(InputError, match=r"row 122: reader 'R0' read 'real-3.png' before; this row says the same as row 5"):
        read(tmp_path / "r.csv", [*rows, dict(rows[3])])
    with pytest.raises(InputError, match="this row contradicts row 5"):
        read(tmp_path / "r.csv", [*rows, rows[3] | {"said": "synthetic"}])


def test_a_reader_who_saw_one_kind_only_was_not_blind(tmp_path):
    rows = [row for row in panel(truth, truth, truth) if row["reader"] != "R1" or truth(row["image"]) == "synthetic"]
    with pytest.raises(InputError, match=r"row 42: reader 'R1' was shown synthetic images only"):
        read(tmp_path / "r.csv", rows)


def test_columns_missing_and_misspelt(tmp_path):
    rows = panel(truth, truth, truth, comment=lambda image: "")
    with pytest.raises(InputError, match=r"row 1: there is no column 'said'"):
        read(tmp_path / "r.csv", [{key: row[key] for key in ("reader", "image")} for row in rows])
    with pytest.raises(InputError, match=r"row 1: unknown column 'acceptible'; did you mean 'acceptable'"):
        read(tmp_path / "r.csv", [row | {"acceptible": 4} for row in rows])
    assert read(tmp_path / "r.csv", rows).unused == ("comment",)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "r.csv").write_text("")
    with pytest.raises(InputError, match="empty"):
        read_readings(tmp_path / "r.csv", real=REAL.studies, synthetic=MADE.studies, findings=FINDINGS)
    with pytest.raises(InputError, match="no rows"):
        read(tmp_path / "r.csv", [], columns=["reader", "image", "said"])
    with pytest.raises(InputError, match="no such table"):
        read_readings(tmp_path / "none.csv", real=REAL.studies, synthetic=MADE.studies, findings=FINDINGS)


def test_truth_comes_from_the_tables_alone(tmp_path):
    path = tmp_path / "r.csv"
    read(path, panel(truth, truth, truth))
    with pytest.raises(InputError, match="in the real table and in the synthetic one"):
        read_readings(path, real=REAL.studies, synthetic=(*MADE.studies, REAL.studies[0]), findings=FINDINGS)
    with pytest.raises(InputError, match=r"'synthetic-0.png' of the real table is marked synthetic"):
        read_readings(path, real=(*REAL.studies, MADE.studies[0]), synthetic=MADE.studies[1:], findings=FINDINGS)


@pytest.mark.parametrize(("rows", "message"), [
    (diagnoses(("A", "synthetic-0.png", 1, 0, 1)), "row 2: 'synthetic-0.png' is synthetic"),
    (diagnoses(("A", "real-0.png", 1, 0, 1), ("B", "real-0.png", 0, 0, 1)), "row 4: the truth of 'real-0.png' contradicts row 2"),
    (diagnoses(("A", "real-0.png", 1, 0, 1), ("A", "real-0.png", 1, 1, 1)), "row 4: reader 'A' gave this answer before, in row 2"),
    (diagnoses(("A", "real-0.png", "", 0, 1)), "row 2: 'truth' is empty"),
])
def test_bad_assisted_readings_are_refused(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "r.csv", [{"said": "", **row} for row in rows])


def test_the_column_of_images_may_have_its_former_name(tmp_path):
    rows = [{"film" if name == "image" else name: value for name, value in row.items()} for row in spoilt(4)]
    assert read(tmp_path / "former.csv", rows).impressions == read(tmp_path / "r.csv", spoilt(4)).impressions != ()
