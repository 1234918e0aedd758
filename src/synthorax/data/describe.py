"""English descriptions of images, in many wordings, of what is known of them and of nothing else.

For training on images that have no report. `choose` is the only source of chance: the same choices give the same text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from synthorax.data.language import LOCATIONS, SEVERITIES, SIZED_BY_DEGREE, SIZES, Range, Statement
from synthorax.data.vocabulary import NO_FINDING
from synthorax.types import Lesion, Stated

_T = TypeVar("_T")
Choose = Callable[[int], int]
"""`choose(n)` gives a whole number from 0 to n - 1"""

NOUNS: Mapping[str, tuple[str, ...]] = {
    "Atelectasis": ("atelectasis", "an area of atelectasis", "lung atelectasis"),
    "Calcification of the Aorta": ("aortic calcification", "a calcified aorta", "calcification of the aorta"),
    "Cardiomegaly": ("cardiomegaly", "an enlarged heart", "cardiac enlargement", "an enlarged cardiac silhouette",
                     "enlargement of the heart"),
    "Consolidation": ("consolidation", "an area of consolidation", "lung consolidation"),
    "COVID-19": ("covid-19", "covid-19 pneumonia", "covid pneumonia"),
    "Edema": ("edema", "pulmonary edema", "oedema", "pulmonary oedema", "lung edema"),
    "Effusion": ("an effusion", "a pleural effusion", "pleural fluid"),
    "Emphysema": ("emphysema", "pulmonary emphysema"),
    "Enlarged Cardiomediastinum": ("a widened mediastinum", "mediastinal widening", "an enlarged cardiomediastinal silhouette"),
    "Fibrosis": ("fibrosis", "pulmonary fibrosis", "lung fibrosis"),
    "Fracture": ("a fracture",),
    "Hernia": ("a hernia", "a hiatal hernia"),
    "Infiltration": ("an infiltrate", "infiltration", "a pulmonary infiltrate"),
    "Lung Lesion": ("a lung lesion", "a pulmonary lesion"),
    "Lung Opacity": ("an opacity", "a lung opacity", "an airspace opacity"),
    "Mass": ("a mass", "a lung mass", "a pulmonary mass"),
    "Nodule": ("a nodule", "a lung nodule", "a pulmonary nodule"),
    "Pleural Other": ("a pleural abnormality",),
    "Pleural_Thickening": ("pleural thickening", "thickening of the pleura"),
    "Pneumomediastinum": ("pneumomediastinum", "mediastinal emphysema"),
    "Pneumonia": ("pneumonia",),
    "Pneumoperitoneum": ("pneumoperitoneum", "free air under the diaphragm"),
    "Pneumothorax": ("a pneumothorax", "ptx"),
    "Subcutaneous Emphysema": ("subcutaneous emphysema", "surgical emphysema"),
    "Support Devices": ("a support device",),
    "Tortuous Aorta": ("a tortuous aorta", "aortic tortuosity", "tortuosity of the aorta"),
}
"""Finding -> nouns that say no more than its label; those with an article can be counted."""

WITHOUT_SIDE = frozenset({"Calcification of the Aorta", "Cardiomegaly", "Enlarged Cardiomediastinum", "Hernia", "Pneumomediastinum",
                          "Pneumoperitoneum", "Support Devices", "Tortuous Aorta"})
"""Findings of which neither side nor place is said."""

_NORMAL = ("normal chest", "no acute abnormality", "normal chest radiograph", "no finding", "healthy chest", "unremarkable chest",
           "no abnormality", "no acute cardiopulmonary abnormality", "the chest is normal", "normal study", "no acute disease",
           "normal film")
_ABNORMAL = ("abnormal chest", "abnormal chest radiograph", "abnormal film")
_PRESENT = ("{bare}", "{bare}", "{bare}", "{bare}", "there {is} {item}", "{item} {is} seen", "{item} {is} present", "{item} can be seen",
            "{bare} {is} visible", "{bare} {is} noted", "evidence of {bare}", "findings of {bare}", "positive for {bare}",
            "image of {item}", "the film shows {item}", "radiograph with {item}", "chest x-ray demonstrating {item}",
            "a patient with {item}")
_ABSENT = ("no {any}", "no {any}", "no {any}", "without {any}", "no evidence of {any}", "there is no {any}", "no sign of {any}",
           "free of {any}", "negative for {any}", "absence of {any}", "no {any} is seen", "{all} {is} absent", "{all} {is} not seen",
           "{all} {is} not present")
_UNCERTAIN = ("possible {any}", "suspected {any}", "questionable {any}", "possibly {any}", "cannot exclude {any}", "suspicious for {any}",
              "concern for {any}", "{all} cannot be excluded", "{all} {is} possible", "{all} {is} suspected")
_HEARTS = ("normal heart size", "the heart is not enlarged", "heart size is normal")
_ADVERBS = {"minimal": "minimally", "slight": "slightly", "mild": "mildly", "moderate": "moderately", "marked": "markedly",
            "severe": "severely", "gross": "grossly"}
_PLACES: Mapping[str, tuple[str, ...]] = {
    "upper zone": ("upper zone", "upper lung zone", "in the {} upper zone", "in the {} upper lung"),
    "mid zone": ("mid zone", "mid lung", "in the {} mid zone", "in the {} middle zone", "in the {} mid lung"),
    "lower zone": ("lower zone", "basal", "basilar", "in the {} lower zone", "in the {} lower lung", "at the {} base",
                   "at the {} lung base"),
    "apical": ("apical", "at the {} apex", "at the {} lung apex"),
    "perihilar": ("perihilar", "in the {} perihilar region", "near the {} hilum"),
    "peripheral": ("peripheral", "in the {} peripheral lung"),
    "medial": ("medial", "in the {} medial lung"),
    "retrocardiac": ("retrocardiac", "in the {} retrocardiac region"),
    "costophrenic": ("in the {} costophrenic angle",),
}


def describe(
    labels: Mapping[str, Stated], *, lesions: Sequence[Lesion] = (), view: str = "", sex: str = "",
    age_years: float = math.nan, choose: Choose,
) -> str:
    """A description of an image from what is stated of it; empty where nothing is.

    Short prompts (`left effusion`, `no effusion`) come as often as lists and sentences. Parts are left out by chance, none is added:
    what is NaN, empty or not in `labels` is never mentioned, and a lesion of a finding that `labels` denies is not either. So a table
    in which unlisted means absent must say so here: `stated_labels` makes the mapping from a row of numbers.

    >>> describe({"Effusion": Stated.PRESENT}, lesions=[Lesion(finding="Effusion", side="left", size=0.2)], choose=lambda n: n // 2)
    'smallish left pleural effusion'
    """
    parts: _Said = {kind: [name for name, stated in labels.items() if stated is kind and name != NO_FINDING] for kind in Stated}
    parts[Stated.PRESENT] += dict.fromkeys(lesion.finding for lesion in lesions if lesion.finding not in labels)
    whole = {Stated.PRESENT: _NORMAL, Stated.ABSENT: _ABNORMAL}.get(labels.get(NO_FINDING, Stated.UNCERTAIN), ())
    parts[None] = list(whole[:1])
    mentions = _choose_mentions(parts, choose)
    items = [_item(name, [lesion for lesion in lesions if lesion.finding == name], choose) for name in mentions.get(Stated.PRESENT, ())]
    doubted, denied = mentions.get(Stated.UNCERTAIN, ()), mentions.get(Stated.ABSENT, ())
    overall = [_pick(whole, choose)] if mentions.get(None) else []
    body = (_note if choose(2) else _sentences)(items, doubted, denied, overall, choose)
    header = _header(view, sex, age_years, choose, always=not body)
    text = _pick((": ", ". ", "; ", ", "), choose).join(filter(None, (header, body)))
    return _with_capitals(text) if text and choose(3) == 0 else text


_Said = dict[Stated | None, list[str]]


def _choose_mentions(parts: _Said, choose: Choose) -> _Said:
    """What is mentioned of what is known, in which order: often one statement alone; `None` stands for the chest as a whole."""
    kinds = [kind for kind, names in parts.items() if names]
    if not kinds:
        return {}
    if choose(3) != 0:
        mentions = {kind: _shuffle(parts[kind], choose) for kind in kinds}
        mentions[Stated.ABSENT] = mentions.get(Stated.ABSENT, [])[:choose(4)]
        mentions = {kind: [name for name in names if kind is Stated.ABSENT or choose(4)] for kind, names in mentions.items()}
        if any(mentions.values()):
            return mentions
    kind = _pick(kinds, choose)
    return {kind: [_pick(parts[kind], choose)]}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """A finding with its details: `small left effusion`, `a small left effusion`, and whether it `is` or `are` there."""

    bare: str
    item: str
    verb: str = "is"


def _note(items: Sequence[_Item], doubted: Sequence[str], denied: Sequence[str], overall: Sequence[str], choose: Choose) -> str:
    """One line as in a note: what is there, then what may be, then what is not; sometimes that first."""
    text = _pick((", ", ", ", " and ", " with "), choose).join([*overall, *(item.bare for item in items)])
    before = [frame for frame in _UNCERTAIN if "{all}" not in frame]
    text = ", ".join([*filter(None, [text]), *(_fill(before, [name], choose) for name in doubted)])
    if not denied:
        return text
    denial = _fill([frame for frame in _ABSENT if "{all}" not in frame], denied, choose)
    if not text:
        return denial
    if items and not overall and choose(4) == 0:
        return denial + _pick((" but ", ", but "), choose) + text
    return text + _pick((", ", ", ", " and ", ", but "), choose) + denial if denial.startswith("no ") else f"{text}, {denial}"


def _sentences(items: Sequence[_Item], doubted: Sequence[str], denied: Sequence[str], overall: Sequence[str], choose: Choose) -> str:
    """Sentences in any order; findings that are denied share one or have one each."""
    mentions = list(overall)
    for item in items:
        mentions.append(_pick(_PRESENT, choose).format(bare=item.bare, item=item.item, **{"is": item.verb}))
    mentions += [_fill(_UNCERTAIN, [name], choose) for name in doubted]
    for names in ([denied] if choose(2) else [[name] for name in denied]):
        if names:
            mentions.append(_pick(_HEARTS, choose) if [*names] == ["Cardiomegaly"] and choose(3) == 0 else _fill(_ABSENT, names, choose))
    return _pick((". ", "; "), choose).join(_shuffle(mentions, choose))


def _fill(frames: Sequence[str], findings: Sequence[str], choose: Choose) -> str:
    """A frame with nouns that have neither details nor articles."""
    nouns = []
    for finding in findings:
        noun, counted = _noun(finding, choose)
        nouns.append(_plural(noun) if counted and choose(5) == 0 and len(findings) > 1 else noun)
    lists = {word: word.join(filter(None, (", ".join(nouns[:-1]), nouns[-1]))) for word in (" or ", " and ")}
    return _pick(frames, choose).format(any=lists[" or "], all=lists[" and "], **{"is": "are" if len(nouns) > 1 else "is"})


def _noun(finding: str, choose: Choose) -> tuple[str, bool]:
    """A noun without its article, and whether it had one. A finding of a data set's own goes by its name."""
    noun = _pick(NOUNS.get(finding, (finding.lower().replace("_", " "),)), choose)
    bare = re.sub("^an? ", "", noun)
    return bare, bare != noun


def _plural(noun: str) -> str:
    head, of, tail = noun.partition(" of ")
    head = head.removesuffix("x") + "ces" if head.endswith("thorax") else head + ("es" if head.endswith(("s", "x")) else "s")
    return re.sub("ys$", "ies", head) + of + tail


def _item(finding: str, lesions: Sequence[Lesion], choose: Choose) -> _Item:
    """A finding that is there, with some of what is known of its lesions."""
    noun, counted = _noun(finding, choose)
    if len(lesions) < 2 or finding in WITHOUT_SIDE:
        return _one(noun, counted, finding, lesions[0] if lesions else Lesion(finding=finding), choose)
    sides = {_side(lesion) for lesion in lesions}
    if (sides == {"left", "right"} and choose(2)) or len(lesions) > 3 or not counted:
        many = {1: f"{min(sides)} " if counted else f"{min(sides)}-sided ", 2: "bilateral "}[len(sides)] if "" not in sides else ""
        bare = f"{'multiple ' if counted and len(lesions) > 2 else ''}{many}{_plural(noun) if counted else noun}"
        return _Item(bare=bare, item=bare, verb="are" if counted else "is")
    single = [_one(noun, counted, finding, lesion, choose) for lesion in lesions]
    return _Item(bare=" and ".join(one.bare for one in single), item=" and ".join(one.item for one in single), verb="are")


def _one(noun: str, counted: bool, finding: str, lesion: Lesion, choose: Choose) -> _Item:
    """One lesion in words: size, severity, side and place, each of which may be left out."""
    before, behind = _shuffle([*_size_words(finding, noun, lesion, choose), *_severity_words(finding, lesion, choose)], choose), ""
    side = "" if finding in WITHOUT_SIDE or choose(8) == 0 else _side(lesion)
    place = "" if finding in WITHOUT_SIDE or choose(2) == 0 else _place(lesion, choose)
    if "{}" in place:
        behind = place.format(side)
    elif side and not place and choose(3) == 0:
        behind = _pick(("on the {}", "on the {} side", "in the {} lung", "in the {} hemithorax"), choose).format(side)
    else:
        before += [side and _pick((side, side, f"{side}-sided"), choose), place]
    bare = " ".join(" ".join([*before, noun, behind]).split())
    return _Item(bare=bare, item=f"{'an' if bare[0] in 'aeiou' else 'a'} {bare}" if counted else bare)


def _size_words(finding: str, noun: str, lesion: Lesion, choose: Choose) -> list[str]:
    if math.isnan(lesion.size) or choose(4) == 0:
        return []
    if finding in SIZED_BY_DEGREE:
        word = _pick([word for word in _ADVERBS if _holds({**SIZES, **SEVERITIES}[word], lesion.size)], choose)
        return [_ADVERBS[word] if re.match("enlarged|widened|tortuous", noun) else word]
    words = [word for word, values in SIZES.items() if _holds(values, lesion.size)]
    word = _pick([word for word in words if word not in ("little", "trace")], choose)
    return [word.replace(" sized", "-sized")]


def _severity_words(finding: str, lesion: Lesion, choose: Choose) -> list[str]:
    if math.isnan(lesion.severity) or finding in SIZED_BY_DEGREE or choose(2) == 0:
        return []
    return [_pick([word for word, values in SEVERITIES.items() if _holds(values, lesion.severity)], choose)]


def _holds(values: Range, value: float) -> bool:
    return values[0] <= value <= values[1]


def _side(lesion: Lesion) -> str:
    """The patient's side, as stated or as the centre shows; empty near the midline."""
    if lesion.side or math.isnan(lesion.x) or abs(lesion.x - 0.5) < 0.1:
        return lesion.side
    return "left" if lesion.x > 0.5 else "right"


def _place(lesion: Lesion, choose: Choose) -> str:
    """A word or a phrase with `{}` for the side, of a region that holds the lesion's centre; without x, of one of the three zones."""
    if math.isnan(lesion.y):
        return ""
    zones = {"upper zone", "mid zone", "lower zone"}
    names = [name for name, region in LOCATIONS.items() if (name in zones or not math.isnan(lesion.x))
             and region.holds(0.5 if math.isnan(lesion.x) else lesion.x, lesion.y)]
    return _pick(_PLACES[_pick(names, choose)], choose)


def _header(view: str, sex: str, age_years: float, choose: Choose, *, always: bool) -> str:
    """View and person, where they are known and chance wants them."""
    image = f"{view} {_pick(('view', 'film', 'chest radiograph', 'chest x-ray'), choose)}" if view and (always or choose(3) == 0) else ""
    adult = not age_years < 18
    names = {"F": ("woman" if adult else "girl", "female patient"), "M": ("man" if adult else "boy", "male patient")}.get(sex, ("patient",))
    person = _pick(names, choose)
    if not math.isnan(age_years):
        person = _pick((f"{age_years:.0f}-year-old {person}", f"{person} of {age_years:.0f} years"), choose)
    if person == "patient" or not (always or choose(3) == 0):
        return image
    return " of a ".join(filter(None, (image, person)))


def _with_capitals(text: str) -> str:
    """With a capital at the start of each sentence and a full stop at the end."""
    return re.sub(r"(^|[.] )([a-z])", lambda match: match[1] + match[2].upper(), text).removesuffix(".") + "."


def _pick(choices: Sequence[_T], choose: Choose) -> _T:
    return choices[choose(len(choices))]


def _shuffle(values: Iterable[_T], choose: Choose) -> list[_T]:
    rest = list(values)
    return [rest.pop(choose(len(rest))) for _ in range(len(rest))]


def mirror_sides(text: str) -> str:
    """The text with left and right exchanged, in any case; mirror images, masks and lesions with it, or it lies.

    >>> mirror_sides("Left effusion, RLL opacity, right-sided nodule")
    'Right effusion, LLL opacity, left-sided nodule'
    """
    def other(match: re.Match[str]) -> str:
        word = _OTHER_SIDE[match[0].lower()]
        return word.upper() if match[0].isupper() else word.capitalize() if match[0][0].isupper() else word

    return _SIDED.sub(other, text)


_PAIRS = (("left", "right"), ("lt", "rt"), ("lul", "rul"), ("lll", "rll"), ("leftward", "rightward"), ("leftwards", "rightwards"))
_OTHER_SIDE = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}
_SIDED = re.compile(r"\b(?:" + "|".join(_OTHER_SIDE) + r")\b", flags=re.IGNORECASE)


def stated_labels(findings: Sequence[str], numbers: Iterable[float]) -> dict[str, Stated]:
    """One row of a label matrix as statements: 1 present, 0.5 uncertain, 0 absent; NaN is left out.

    >>> stated_labels(["Mass", "Edema", "Hernia"], [1.0, math.nan, 0.0])
    {'Mass': <Stated.PRESENT: 'present'>, 'Hernia': <Stated.ABSENT: 'absent'>}
    """
    meaning = {1.0: Stated.PRESENT, 0.5: Stated.UNCERTAIN, 0.0: Stated.ABSENT}
    return {name: meaning[float(number)] for name, number in zip(findings, numbers, strict=True) if not math.isnan(number)}


def lesions_of(statements: Iterable[Statement]) -> tuple[Lesion, ...]:
    """Lesions that a text asks for, read by `parse_text`: the middle of what its words stand for, one a side; NaN where they are silent.

    >>> lesions_of([Statement(finding="Nodule", stated=Stated.PRESENT, side="left", size=(0.5, 1.0))])[0].size
    0.75
    """
    lesions = []
    for statement in statements:
        if statement.stated is not Stated.PRESENT or statement.finding == NO_FINDING:
            continue
        for side in ("left", "right") if statement.side == "both" else (statement.side,):
            x, y = LOCATIONS[statement.location].centre(side) if statement.location else (math.nan, math.nan)
            size, severity = (math.nan if values is None else sum(values) / 2 for values in (statement.size, statement.severity))
            lesions.append(Lesion(finding=statement.finding, side=side, size=size, severity=severity, x=x, y=y))
    return tuple(lesions)
