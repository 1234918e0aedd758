"""Descriptions say what is known and nothing else: everything that `describe` writes is read back by `parse_text`."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from synthorax.data import phantom
from synthorax.data.describe import NOUNS, describe, lesions_of, mirror_sides, stated_labels
from synthorax.data.language import LOCATIONS, MAX_WORDS, Statement, check_text, labels_of, parse_text
from synthorax.data.vocabulary import KNOWN, NO_FINDING, SYNONYMS
from synthorax.errors import InputError
from synthorax.prompts import split_prompt
from synthorax.types import Lesion, Stated

PRESENT, ABSENT, UNCERTAIN = Stated.PRESENT, Stated.ABSENT, Stated.UNCERTAIN
DISEASES = tuple(name for name in KNOWN if name != NO_FINDING)
REPORTS = Path(__file__).parents[3] / "shared/data/research/labels/iu_openi_reports_labeled.csv"


def one(text: str) -> Statement:
    """The only statement of a text."""
    (statement,) = parse_text(text)
    return statement


def stated(text: str) -> dict[str, str]:
    return {name: state.value for name, state in labels_of(parse_text(text)).items()}


# Reading.

@pytest.mark.parametrize("finding", [name for name in KNOWN if name != NO_FINDING])
def test_every_finding_is_read_by_all_its_names(finding: str) -> None:
    for name in (finding, finding.lower(), *SYNONYMS.get(finding, ()), *NOUNS[finding]):
        assert stated(f"small {name}") == {finding: "present"}, name
        assert stated(f"There is no {name}.") == {finding: "absent"}, name


@pytest.mark.parametrize(("text", "expected"), [
    ("no pneumothorax or effusion", {"Pneumothorax": "absent", "Effusion": "absent"}),
    ("No pneumothorax, large effusion or focal mass.", {"Pneumothorax": "absent", "Effusion": "absent", "Mass": "absent"}),
    ("no evidence of a mass; small nodule", {"Mass": "absent", "Nodule": "present"}),
    ("no effusion, a small nodule on the left", {"Effusion": "absent", "Nodule": "present"}),
    ("no effusion but cardiomegaly", {"Effusion": "absent", "Cardiomegaly": "present"}),
    ("cardiomegaly without edema", {"Cardiomegaly": "present", "Edema": "absent"}),
    ("Effusion and pneumothorax are absent", {"Effusion": "absent", "Pneumothorax": "absent"}),
    ("A nodule is present, and effusion is absent", {"Nodule": "present", "Effusion": "absent"}),
    ("The effusion has resolved with residual atelectasis.", {"Effusion": "absent", "Atelectasis": "present"}),
    ("neither mass nor nodule", {"Mass": "absent", "Nodule": "absent"}),
    ("lungs free of infiltrates; negative for pneumonia", {"Infiltration": "absent", "Pneumonia": "absent"}),
    ("no change in the left effusion", {"Effusion": "present"}),
    ("pneumothorax cannot be excluded", {"Pneumothorax": "uncertain"}),
    ("possible left effusion, cardiomegaly", {"Effusion": "uncertain", "Cardiomegaly": "present"}),
    ("Opacity that may represent pneumonia", {"Lung Opacity": "present", "Pneumonia": "uncertain"}),
    ("atelectasis versus infiltrate", {"Atelectasis": "uncertain", "Infiltration": "uncertain"}),
    ("the heart is not enlarged", {"Cardiomegaly": "absent"}),
    ("Heart size is normal. Aorta is mildly tortuous.", {"Cardiomegaly": "absent", "Tortuous Aorta": "present"}),
    ("pericardial effusion", {}),
    ("normal chest", {NO_FINDING: "present"}),
    ("No acute cardiopulmonary abnormality.", {NO_FINDING: "present"}),
    ("no acute abnormality, old rib fracture", {"Fracture": "present"}),
    ("no pleural abnormality", {"Pleural Other": "absent"}),
    ("abnormal chest", {NO_FINDING: "absent"}),
    ("", {}),
])
def test_negation_and_doubt_reach_as_far_as_a_reader_takes_them(text: str, expected: dict[str, str]) -> None:
    assert stated(text) == expected


def test_details_belong_to_the_nearest_finding() -> None:
    nodule, effusion = parse_text("small faint nodule in the right upper zone and moderate-sized left basal effusion")
    assert (nodule.finding, nodule.side, nodule.location, nodule.size, nodule.severity) == (
        "Nodule", "right", "upper zone", (0, 1 / 3), (0, 1 / 3))
    assert (effusion.side, effusion.location, effusion.size, effusion.severity) == ("left", "lower zone", (1 / 3, 2 / 3), None)
    assert one("On the right, there is a large pneumothorax").side == "right"
    assert one("bilateral effusions, left greater than right").side == "both"
    assert one("left and right effusion").side == "both"
    assert one("moderate to large effusion").size == (1 / 3, 1)
    assert one("RUL patchy consolidation") == Statement(finding="Consolidation", stated=PRESENT, side="right", location="upper zone",
                                                       morphology=("patchy",))
    assert [s.side for s in parse_text("effusion on the left without pneumothorax")] == ["left", ""]


def test_degree_of_an_enlarged_heart_is_its_size() -> None:
    for text in ("severe cardiomegaly", "the heart is severely enlarged", "markedly enlarged heart"):
        assert (one(text).size, one(text).severity) == ((2 / 3, 1), None)


def test_own_findings_are_read_when_declared() -> None:
    assert parse_text("left silicosis nodosa") == ()
    assert labels_of(parse_text("no silicosis nodosa", allow=["Silicosis_Nodosa"])) == {"Silicosis_Nodosa": ABSENT}


def test_lesions_lie_on_the_side_that_is_named() -> None:
    left, right = lesions_of(parse_text("large left apical nodule, small right basal nodule, no mass"))
    assert left.x > 0.5 > right.x and left.y < 0.3 < right.y  # the patient's left is on the right of the image
    assert left.size == pytest.approx(5 / 6) and right.size == pytest.approx(1 / 6) and math.isnan(left.severity)
    assert [lesion.side for lesion in lesions_of(parse_text("bilateral effusions"))] == ["left", "right"]
    assert math.isnan(lesions_of(parse_text("effusion"))[0].x)


def test_zones_cover_the_image() -> None:
    for y in (0.0, 0.39, 0.4, 0.5, 0.61, 1.0):
        assert any(LOCATIONS[zone].holds(0.3, y) and LOCATIONS[zone].holds(0.7, y) for zone in ("upper zone", "mid zone", "lower zone"))
    for region in LOCATIONS.values():
        assert region.holds(*region.centre("left")) and region.holds(*region.centre("right"))


def test_the_phantom_s_own_rows_are_read() -> None:
    spec = phantom.PhantomSpec(seed=1, lesions=(phantom.LesionSpec(finding="Effusion", side="left", size=0.1),
                                                phantom.LesionSpec(finding="Cardiomegaly", size=0.9)))
    effusion, heart = parse_text(phantom._describe(spec))
    assert (effusion.finding, effusion.side, effusion.size, heart.finding, heart.size) == (
        "Effusion", "left", (0, 1 / 3), "Cardiomegaly", (2 / 3, 1))


# Writing.

def case(seed: int) -> tuple[dict[str, Stated], list[Lesion], str]:
    """A random image and a description of it."""
    rng = random.Random(seed)
    names = list(phantom.FINDINGS if seed % 2 else (*DISEASES, "Silicosis_Nodosa"))
    rng.shuffle(names)
    labels = {name: rng.choice([PRESENT, PRESENT, ABSENT, UNCERTAIN]) for name in names[:rng.randrange(6)]}
    if PRESENT not in labels.values() and rng.random() < 0.5:
        labels[NO_FINDING] = PRESENT

    def number() -> float:
        return rng.choice([math.nan, rng.random()])

    lesions = [Lesion(finding=name, side=rng.choice(["left", "right", ""]), size=number(), severity=number(), y=number())
               for name, state in labels.items() if state is PRESENT for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    text = describe(labels, lesions=lesions, view=rng.choice(["", "PA", "AP", "LATERAL"]), sex=rng.choice(["", "F", "M"]),
                    age_years=rng.choice([math.nan, 5, 55]), choose=rng.randrange)
    return labels, lesions, text


def assert_agrees(statement: Statement, labels: Mapping[str, Stated], lesions: Sequence[Lesion]) -> None:
    own = [lesion for lesion in lesions if lesion.finding == statement.finding]
    assert labels.get(statement.finding) is statement.stated
    assert not statement.side or ({"left", "right"} if statement.side == "both" else {statement.side}) <= {one.side for one in own}
    assert not statement.size or any(statement.size[0] <= lesion.size <= statement.size[1] for lesion in own)
    assert not statement.severity or any(statement.severity[0] <= lesion.severity <= statement.severity[1] for lesion in own)
    low, high = LOCATIONS[statement.location].y if statement.location else (0, 0)
    assert not statement.location or any(low <= lesion.y <= high for lesion in own)


@pytest.mark.parametrize("block", range(8))
def test_what_is_written_is_read_back(block: int) -> None:
    for seed in range(200 * block, 200 * (block + 1)):
        labels, lesions, text = case(seed)
        statements = parse_text(text, allow=["Silicosis_Nodosa"])
        assert check_text(text, extra_words={"silicosis", "nodosa"}) == text
        try:
            assert bool(statements) == bool(labels)
            for statement in statements:
                assert_agrees(statement, labels, lesions)
        except AssertionError as error:
            raise AssertionError(f"{text!r} from {labels} and {lesions}") from error


def test_texts_are_many_short_and_long() -> None:
    lesion = Lesion(finding="Effusion", side="left", size=0.1, severity=0.9, x=0.7, y=0.8)
    labels = {"Effusion": PRESENT, "Nodule": ABSENT, "Pneumothorax": ABSENT, "Cardiomegaly": UNCERTAIN}
    texts = [describe(labels, lesions=[lesion], view="PA", sex="F", age_years=60, choose=random.Random(seed).randrange)
             for seed in range(1000)]
    assert len(set(texts)) > 750
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[100] <= 4 and lengths[900] >= 14 and lengths[-1] <= 60
    said = [stated(text) for text in texts]
    for name, state, least in (("Effusion", "present", 400), ("Nodule", "absent", 200), ("Cardiomegaly", "uncertain", 200)):
        assert least < sum(row.get(name) == state for row in said) < 950
    sides = [statement.side for text in texts for statement in parse_text(text) if statement.finding == "Effusion"]
    assert sides.count("left") > 0.6 * len(sides) and "right" not in sides and sides.count("") > 25


def test_the_same_choices_give_the_same_text() -> None:
    assert [case(seed)[2] for seed in range(50)] == [case(seed)[2] for seed in range(50)]


def test_nothing_known_is_nothing_said() -> None:
    for seed in range(50):
        assert describe({}, choose=random.Random(seed).randrange) == ""
        assert not parse_text(describe({}, view="PA", sex="M", choose=random.Random(seed).randrange))
        text = describe({"Mass": PRESENT}, lesions=[Lesion(finding="Mass")], choose=random.Random(seed).randrange)
        assert one(text) == Statement(finding="Mass", stated=PRESENT)
        denied = describe({"Mass": ABSENT}, lesions=[Lesion(finding="Mass", side="left")], choose=random.Random(seed).randrange)
        assert one(denied) == Statement(finding="Mass", stated=ABSENT)


def test_side_and_place_follow_from_the_centre() -> None:
    for seed in range(200):
        text = describe({}, lesions=[Lesion(finding="Nodule", x=0.75, y=0.2)], choose=random.Random(seed).randrange)
        statement = one(text)
        assert statement.side in ("left", "") and (not statement.location or LOCATIONS[statement.location].holds(0.75, 0.2)), text


def test_mirroring_moves_every_lesion_to_the_other_side() -> None:
    for seed in range(400):
        text = case(seed)[2]
        assert mirror_sides(mirror_sides(text)) == text
        for before, after in zip(parse_text(text), parse_text(mirror_sides(text)), strict=True):
            assert after.side == {"left": "right", "right": "left"}.get(before.side, before.side)
            assert (after.finding, after.stated, after.location) == (before.finding, before.stated, before.location)
    assert mirror_sides("LEFT effusion, RLL nodule; copyright") == "RIGHT effusion, LLL nodule; copyright"


def test_numbers_become_statements() -> None:
    assert stated_labels(["A", "B", "C", "D"], [1, 0.5, 0, math.nan]) == {"A": PRESENT, "B": UNCERTAIN, "C": ABSENT}


# Refusing and splitting.

FOREIGN = (
    "Kein Nachweis eines Pneumothorax.", "Kleiner Pleuraerguss links.", "Herz normal groß, keine Infiltrate.", "Pneumothorax links apikal",
    "Rundherd im linken Oberlappen, 2 cm", "Zwerchfelle glatt begrenzt, Sinus frei", "Normalbefund", "Kein Erguss",
    "Petit épanchement pleural gauche.", "Pas de pneumothorax.", "Pneumothorax apical droit", "Radiographie thoracique normale",
    "Opacité alvéolaire du lobe inférieur droit", "Atelectasie basale droite", "Cardiomégalie modérée",
    "Pequeño derrame pleural izquierdo.", "Sin neumotórax.", "Derrame pleural bilateral", "Consolidacion basal derecha",
    "Nodulo pulmonar solitario", "Silueta cardiaca normal, no se observa derrame", "Infiltrados alveolares bilaterales",
    "Pequeno derrame pleural à esquerda", "Ausência de pneumotórax", "Cardiomegalia leve", "Opacidade em base pulmonar direita",
    "Derrame pleural bilateral, sem pneumotorax", "Área cardíaca normal, seios costofrênicos livres",
    "Versamento pleurico sinistro", "Geen pneumothorax, klein pleuravocht links", "Плевральный выпот слева", "左侧胸腔积液",
    "asdf qwer zxcv",
)


@pytest.mark.parametrize("text", FOREIGN)
def test_other_languages_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"words of the description are not known, such as '.*English of radiology"):
        check_text(text)


@pytest.mark.parametrize("text", [
    "", "left effusion", "No acute cardiopulmonary process.", "2.5 cm nodule, RUL; T12 fracture", "XXXX XXXX. No XXXX effusion.",
    "___ year old woman with effusions", "Postero-anterior film: hyperinflated lungs, flattened hemidiaphragms",
    "Cholecystectomy clips. Degenerative changes of the thoracic spine.", "NO EFFUSION", "the patient's left lung is clear",
])
def test_english_reports_pass(text: str) -> None:
    assert check_text(text) == text


def test_long_broken_and_other_values_are_refused_with_row_and_remedy() -> None:
    assert check_text(" left\n\teffusion ") == "left effusion"
    assert check_text("effusion " * MAX_WORDS)
    with pytest.raises(InputError, match=r"plan.csv row 7: the description has 10,000 words; keep to 200"):
        check_text("effusion " * 10_000, file="plan.csv", row=7)
    for broken in ("left\x00effusion", "left \ufffd effusion", "left \ud800", "left\x1b[0m"):
        with pytest.raises(InputError, match=r"U\+[0-9A-F]{4}, which is not text; save the file as UTF-8"):
            check_text(broken)
    with pytest.raises(InputError, match="is float, not text"):
        check_text(math.nan)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 of 1 words"):
        check_text("x" + "q" * 100_000)
    with pytest.raises(InputError, match="not known"):
        check_text("?!")
    with pytest.raises(InputError, match=r"2 of 2 words .* 'silicosiform', 'pneumonoma'"):
        check_text("silicosiform pneumonoma")
    assert check_text("silicosiform pneumonoma", extra_words={"Silicosiform Pneumonoma"})


@pytest.mark.parametrize(("prompt", "parts"), [
    ("small left effusion AND cardiomegaly NOT pneumothorax",
     (("small left effusion", 1.0), ("cardiomegaly", 1.0), ("pneumothorax", -1.0))),
    ("no effusion and not a nodule", (("no effusion and not a nodule", 1.0),)),
    ("effusion AND NOT nodule", (("effusion", 1.0), ("nodule", -1.0))),
    ("NOT pneumothorax", (("pneumothorax", -1.0),)),
    ("Effusion, AND  left nodule", (("Effusion", 1.0), ("left nodule", 1.0))),
    ("LEFT EFFUSION AND DOES NOT SHOW A MASS", (("LEFT EFFUSION AND DOES NOT SHOW A MASS", 1.0),)),
    ("ANDERSON band", (("ANDERSON band", 1.0),)),
    ("", (("", 1.0),)),
])
def test_operators_split_a_prompt(prompt: str, parts: tuple[tuple[str, float], ...]) -> None:
    assert split_prompt(prompt) == parts


@pytest.mark.parametrize(("prompt", "where"), [("AND nodule", "'AND' stands without words before"), ("nodule AND", "behind"),
                                               ("nodule NOT", "'NOT' stands without words behind"), ("mass AND AND nodule", "behind"),
                                               ("mass NOT AND nodule", "'NOT' stands"), ("AND NOT nodule", "before")])
def test_an_operator_without_words_is_refused(prompt: str, where: str) -> None:
    with pytest.raises(InputError, match=where):
        split_prompt(prompt)


# Real reports, for measuring; `docs/reference/text.md` has the figures.

@pytest.mark.skipif(not REPORTS.exists(), reason="the reports of the IU collection are not beside the checkout")
def test_real_reports_pass_and_are_read() -> None:
    with REPORTS.open(newline="", encoding="utf-8") as file:
        rows = list({row["xml_uid"]: row for row in csv.DictReader(file)}.values())[:600]
    impressions = [row["impression"] for row in rows if row["impression"]]
    for text in impressions:
        check_text(text)
    read = [labels_of(parse_text(f"{row['findings']}\n{row['impression']}")) for row in rows]
    for finding in ("Effusion", "Cardiomegaly", "Atelectasis"):
        hits = sum(labels.get(finding) in (PRESENT, UNCERTAIN) and row[finding] == "1" for labels, row in zip(read, rows, strict=True))
        said = sum(labels.get(finding) in (PRESENT, UNCERTAIN) for labels in read)
        assert 2 * hits / (said + sum(row[finding] == "1" for row in rows)) > 0.85
