"""The English of radiology: its words, and what a description states.

The tables serve both ways: `parse_text` reads with them what `describe` wrote with them. Places are those of a frontal image
as it hangs on a light box: the patient's left is on the right of the image.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthorax.data.vocabulary import KNOWN, NO_FINDING, NOT_A_FINDING_OF_DISEASE, SYNONYMS
from synthorax.errors import InputError
from synthorax.types import Stated

MAX_WORDS = 200

Range = tuple[float, float]

SIZES: Mapping[str, Range] = {
    "trace": (0, 0.15), "tiny": (0, 0.15), "small": (0, 1 / 3), "little": (0, 1 / 3), "smallish": (0.15, 1 / 3),
    "moderate": (1 / 3, 2 / 3), "medium": (1 / 3, 2 / 3), "moderate sized": (1 / 3, 2 / 3), "medium sized": (1 / 3, 2 / 3),
    "large": (2 / 3, 1), "big": (2 / 3, 1), "sizeable": (2 / 3, 1), "extensive": (2 / 3, 1), "massive": (0.85, 1), "huge": (0.85, 1),
}
"""Size word -> the sizes of `Lesion.size` that it stands for; thirds, as far as the words go."""

SEVERITIES: Mapping[str, Range] = {
    "minimal": (0, 0.15), "barely visible": (0, 0.15), "subtle": (0, 1 / 3), "faint": (0, 1 / 3), "mild": (0, 1 / 3),
    "slight": (0, 1 / 3), "minor": (0, 1 / 3), "moderately severe": (1 / 3, 2 / 3), "distinct": (1 / 3, 2 / 3),
    "severe": (2 / 3, 1), "marked": (2 / 3, 1), "pronounced": (2 / 3, 1), "conspicuous": (2 / 3, 1), "gross": (2 / 3, 1),
    "advanced": (2 / 3, 1),
}
"""Severity word -> values of `Lesion.severity`."""

MORPHOLOGIES = (
    "patchy", "streaky", "linear", "bandlike", "reticular", "nodular", "reticulonodular", "confluent", "round", "rounded", "oval",
    "spiculated", "lobulated", "irregular", "smooth", "diffuse", "focal", "multifocal", "scattered", "discrete", "hazy", "miliary",
    "masslike", "cavitary", "cavitating", "cystic", "calcified", "solitary", "multiple", "loculated", "layering",
    "ground glass",
)
"""What a lesion may look like beside its size and severity."""

SIZED_BY_DEGREE = frozenset({"Cardiomegaly", "Enlarged Cardiomediastinum", "Tortuous Aorta"})
"""Findings whose degree is their size: a mild cardiomegaly is a slightly enlarged heart, not one that is hard to see."""

SIDES = {"left": "left", "right": "right", "lt": "left", "rt": "right", "bilateral": "both", "both": "both", "biapical": "both",
         "bibasilar": "both", "bibasal": "both", "left sided": "left", "right sided": "right", "bilaterally": "both"}
"""Word -> the patient's side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A part of the lungs as it lies on a frontal image, in parts of the image's width and height."""

    from_midline: Range
    """distance of x from 0.5"""
    y: Range
    """from the top"""
    words: tuple[str, ...]
    """how reports name it"""

    def holds(self, x: float, y: float) -> bool:
        """Whether a point of the image lies in it, on either side."""
        return self.from_midline[0] <= abs(x - 0.5) <= self.from_midline[1] and self.y[0] <= y <= self.y[1]

    def centre(self, side: str) -> tuple[float, float]:
        """Its middle on the patient's `left` or `right`; x is NaN for any other side."""
        toward = {"left": 1.0, "right": -1.0}.get(side, math.nan)
        return 0.5 + toward * sum(self.from_midline) / 2, sum(self.y) / 2


_UPPER, _MID, _LOWER = (0.0, 0.40), (0.40, 0.60), (0.60, 1.0)
LOCATIONS: Mapping[str, Region] = {
    "upper zone": Region(from_midline=(0, 0.5), y=_UPPER, words=(
        "upper zone", "upper lung zone", "upper lung", "upper lung field", "upper lobe", "upper field", "suprahilar")),
    "mid zone": Region(from_midline=(0, 0.5), y=_MID, words=(
        "mid zone", "middle zone", "mid lung zone", "mid lung", "midlung", "middle third", "middle lobe", "mid lung field", "lingula")),
    "lower zone": Region(from_midline=(0, 0.5), y=_LOWER, words=(
        "lower zone", "lower lung zone", "lower lung", "lower lung field", "lower lobe", "lower field", "base", "lung base", "basal",
        "basilar", "bases", "lung bases", "bibasilar", "bibasal", "infrahilar", "subpulmonic")),
    "apical": Region(from_midline=(0.05, 0.32), y=(0.0, 0.25), words=("apical", "apex", "lung apex", "apices", "biapical")),
    "perihilar": Region(from_midline=(0.04, 0.20), y=(0.36, 0.62), words=("perihilar", "hilar", "hilum", "hila", "parahilar", "central")),
    "peripheral": Region(from_midline=(0.27, 0.5), y=(0.15, 0.85), words=("peripheral", "peripherally", "laterally", "subpleural")),
    "medial": Region(from_midline=(0, 0.15), y=(0.15, 0.9), words=("medial", "medially", "paramediastinal", "paravertebral")),
    "retrocardiac": Region(from_midline=(0, 0.16), y=(0.52, 0.85), words=("retrocardiac", "behind the heart")),
    "costophrenic": Region(from_midline=(0.26, 0.5), y=(0.66, 1.0), words=(
        "costophrenic", "costophrenic angle", "costophrenic angles", "costophrenic sulcus")),
}
"""Name -> region; the three zones cover the image, the others lie across them."""

PHRASES: Mapping[str, tuple[str, ...]] = {
    "Atelectasis": ("atelectatic", "lobar collapse", "lung collapse", "collapsed lung"),
    "Calcification of the Aorta": ("aortic calcifications", "calcified aortic", "aorta * calcified", "aortic * calcified",
                                   "calcifications of the aorta", "calcified thoracic aorta"),
    "Cardiomegaly": ("heart * enlarged", "cardiac silhouette * enlarged", "enlarged cardiac silhouette", "enlargement of the heart",
                     "enlargement of the cardiac silhouette", "enlarged cardiac", "cardiac size * enlarged", "large heart",
                     "enlarged heart size", "increased heart size", "heart size * increased", "heart * large",
                     "borderline heart size", "heart * borderline"),
    "Consolidation": ("consolidated", "consolidative"),
    "COVID-19": ("covid 19 pneumonia", "covid pneumonia", "sars cov 2"),
    "Edema": ("interstitial edema", "interstitial oedema", "alveolar edema"),
    "Effusion": ("pleural fluid", "fluid in the pleural space", "hydrothorax", "hemothorax", "haemothorax"),
    "Emphysema": ("emphysematous", "bullous disease"),
    "Enlarged Cardiomediastinum": ("mediastinal widening", "widening of the mediastinum", "mediastinum * widened"),
    "Fibrosis": ("fibrotic", "interstitial fibrosis"),
    "Fracture": ("fractured", "broken rib"),
    "Hernia": ("hernias", "diaphragmatic hernia"),
    "Infiltration": ("infiltrations", "infiltrative"),
    "Lung Lesion": ("pulmonary lesion", "pulmonary lesions", "lesion in the lung"),
    "Lung Opacity": ("opacity", "opacities", "opacification", "airspace opacities", "airspace disease", "air space disease",
                     "air space opacity", "air space opacities", "opacified"),
    "Mass": ("lung masses", "pulmonary mass", "pulmonary masses"),
    "Nodule": ("lung nodules", "pulmonary nodules", "nodular opacity", "nodular opacities", "nodular density", "nodular densities"),
    "Pleural_Thickening": ("thickened pleura", "thickening of the pleura", "apical cap", "pleural capping"),
    "Pleural Other": ("pleural plaque", "pleural plaques", "pleural abnormality", "pleural abnormalities"),
    "Pneumonia": ("pneumonias", "bronchopneumonia", "pneumonic"),
    "Pneumoperitoneum": ("free intraperitoneal air", "free air under the diaphragm", "free subdiaphragmatic air"),
    "Pneumothorax": ("ptx", "hydropneumothorax"),
    "Support Devices": ("pacemaker", "catheter", "picc", "picc line", "central line", "endotracheal tube", "nasogastric tube", "chest tube",
                        "tracheostomy tube", "sternotomy wires", "pacer leads", "port a cath", "icd"),
    "Tortuous Aorta": ("tortuous thoracic aorta", "aorta * tortuous", "tortuosity of the aorta", "tortuous aortic"),
}
"""Finding -> further phrases, beside its name and the synonyms of `data.vocabulary`; `*` stands for up to five words."""

_OTHER_THINGS = ("pericardial effusion", "joint effusion", "mass effect", "soft tissue edema", "body mass")
"""Phrases that hold a finding's word and do not mean it."""

_NOUN_OF_NORMAL = r"(?:abnormalit(?:y|ies)|disease|process|findings?|patholog(?:y|ies)|changes?|illness|infection)"
_NORMAL = re.compile(
    r"\b(?:no|without|negative for|free of)(?! pleural abnormalit)"
    r"(?: (?:evidence|signs?|findings|suggestion) (?:of|for))?(?: (?:any|an|the|definite))?"
    r"(?: (?:acute|active|significant|radiographic|focal|relevant|abnormal|important))*"
    r"(?: (?:cardio ?pulmonary|cardiac|pulmonary|pleural|chest|thoracic|intra ?thoracic|lung|cardio|cardiothoracic|active|or|and|,))*"
    rf" {_NOUN_OF_NORMAL}\b(?! of| in| is suspected)"
    r"|\b(?:normal|unremarkable|healthy|negative)(?: (?:pa|ap|frontal|two view|lateral|and|appearing))*"
    r" (?:chest|film|radiograph|x ray|study|examination|exam|thorax|lungs and heart)\b"
    r"|\b(?:chest|film|study|examination|exam)(?: (?:radiograph|x ray|film))? (?:is|appears) (?:normal|unremarkable|negative|healthy)\b"
    r"|^(?:normal|healthy|unremarkable|nothing abnormal)$")
_ABNORMAL = re.compile(r"\babnormal (?:chest|film|radiograph|study)\b|\bnot (?:a )?normal\b")
_NORMAL_HEART = re.compile(
    r"\b(?:normal heart size|normal cardiac size|normal sized heart|normal size of the heart|normal cardiac silhouette)\b"
    r"|\b(?:heart|cardiac|cardiomediastinal)(?: (?:size|silhouette|is|are|and|appears|the|in|mediastinum|contour|contours|lungs))*"
    r" (?:normal|unremarkable|within normal limits|not enlarged)\b")

_PSEUDO = re.compile(r"\bno(?: \w+){0,3} (?:change|increase|decrease|progression|improvement)s?\b|\bnot (?:\w+ )?changed\b|\bnot only\b")
_DOUBT_AFTER = re.compile(
    r"\b(?:can ?not|can t|could not|not)(?: be)?(?: \w+ly)? (?:excluded|ruled out)\b|\b(?:may|might|could) be present\b|\bless likely\b"
    r"|\b(?:is|are) (?:also )?(?:possible|suspected|questioned|questionable|unlikely)\b")
_DOUBT_BEFORE = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|may|might|could|suspicious (?:for|of)|suspicion (?:for|of)|suspected|suspect|concern(?:ing)? (?:for|of)"
    r"|can ?not (?:\w+ly )?(?:exclude|rule out)|questionable|question(?: of)?|query|equivocal(?: for)?|versus|vs|rule out|suggest\w*"
    r"|(?:to )?exclude|evaluat\w+ for|assess for|borderline|uncertain|presumed|likely)\b")
_SEEN = r"(?:seen|identified|present|visible|visualized|visualised|evident|noted|appreciated|demonstrated|observed|found|detected|apparent)"
_ABSENT_AFTER = re.compile(
    rf"\b(?:(?:is|are|was|were|has|have) )?(?:not(?: \w+ly)?(?: been)? {_SEEN}|no longer {_SEEN}|absent|(?:been )?ruled out"
    r"|(?:been )?excluded|none|(?:completely |been )?resolved|cleared|gone)\b")
_ABSENT_BEFORE = re.compile(
    r"\b(?:no|not|without|absence of|lack of|free (?:of|from)|clear of|negative for|neither|nor|resolution of|resolved|absent)\b")
_SCOPE_ENDS = re.compile(
    r"\b(?:but|however|although|though|except|apart from|aside from|other than|whereas|while|there (?:is|are)|with(?! no\b))\b")
_OPENER = (r"(?:a|an|the|there|in|on|at|some|few|old|stable|unchanged|known|possibl[ey]|suspected|suspicious|questionable|concern|cannot|"
           r"heart|lungs|also|" + "|".join([*SIZES, *SEVERITIES, *SIDES, "mildly", "moderately", "severely", "markedly", "slightly"]) + ")")
_NEW_ITEM = re.compile(rf" ,(?: and| but)? (?={_OPENER}\b)| and (?={_OPENER}\b)")
_CHUNK = re.compile(r" , | ,$|\b(?:and|or|nor|with|without|but|no|versus|vs|however|although)\b")
_ABBREVIATIONS = {"rul": "right upper lobe", "rml": "right middle lobe", "rll": "right lower lobe", "lul": "left upper lobe",
                  "lll": "left lower lobe", "mildly": "mild", "slightly": "slight", "minimally": "minimal", "severely": "severe",
                  "markedly": "marked", "grossly enlarged": "gross enlarged", "moderately enlarged": "moderate enlarged"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """What one mention in a text says of a finding."""

    finding: str
    stated: Stated
    side: str = ""
    """the patient's left, right, both, or empty"""
    size: Range | None = None
    """the values of `Lesion.size` that its words stand for; None: not stated"""
    severity: Range | None = None
    """the values of `Lesion.severity`"""
    location: str = ""
    """name in `LOCATIONS`"""
    morphology: tuple[str, ...] = ()
    """words of `MORPHOLOGIES`"""


_WORDS = frozenset(re.findall("[a-z]+", """
an this that these those there here it they them their we our i which who what one two three four first once twice on at by for from to
into within without with over above below between through throughout across along around about near beside before after during since until
and or but if then than as so such either neither each every all any some none not only also too very more most many less few another same
else is are was were be been being has have do does done can could may might must will would cannot again further yet now when where while
because due however although otherwise thus how up out upon patient man woman male female child adult year month week day hour old age
history known clinical status post pre pain dyspnea breath shortness trauma injury surgery operation preoperative postoperative thorax
retrosternal cardio cardiopulmonary cardiothoracic arch knob vessel vascular vasculature vascularity bronchovascular peribronchial airway
parenchyma parenchymal hemidiaphragm cardiophrenic sulci fissure clavicle sternum sternal spine spinal vertebra vertebral vertebrae bone
bony osseous skeletal humerus humeral shoulder joint soft tissue abdomen abdominal stomach bowel colon liver trachea carina paratracheal
azygos vein venous artery ventricle atrium atrial valve pericardial oesophagus neck axillary breast nipple node lymph lymphadenopathy
adenopathy wall hemithorax cavitation contour shadow marking margin structure level region area aspect segment subsegmental quadrant
portion part side lateral anterior posterior superior inferior proximal distal frontal nodularity pneumonitis dense gas blood congestion
failure copd asthma tuberculosis tb granuloma granulomatous calcific scar scarring bronchiectasis bronchitis abscess cyst bulla bullae
tumor tumour cancer carcinoma malignancy malignant metastatic infection infectious inflammation inflammatory aspiration hemorrhage
haemorrhage embolism contusion sarcoidosis silicosis viral process abnormal deformity scoliosis kyphosis degenerative spondylosis
osteophyte osteopenia arthritis arthritic atherosclerosis atherosclerotic ectasia ectatic aneurysm hypertension hyperinflation
hyperexpansion hyperinflated hyperexpanded hypoinflation inflated aeration aerated expanded volume loss crowding elevation eventration
prominence prominent shift displaced obscuration honeycombing cuffing bronchogram band ground glass defined ill well circumscribed
homogeneous heterogeneous wedge lucency lucent hyperlucent radiolucent radiopaque sclerotic destructive solid single numerous several
septal kerley coarse discoid meniscus tension spontaneous low high larger smaller narrow long short severity degree extent amount number
measure measurement diameter mm cm m ml kg unremarkable clear intact stable unchanged change interval new recent acute subacute chronic
active remote prior previous present presence absent absence resolve resolution improve improvement worsen worse better increase decrease
progress progression persistent residual recurrent develop remain similar compare comparison compatible consistent suggest suggestion
suggestive suspicious suspicion suspect concern possible possibly probable probably unlikely definite questionable question equivocal
indeterminate nonspecific specific typical atypical evidence sign result impression indication diagnosis differential etiology secondary
primary related represent reflect indicate show demonstrate reveal see seen note identify observe find found appear appearance look
visualize evident apparent appreciate exclude include rule evaluate evaluation assessment correlate correlation recommend consider follow
followup obtain perform report exam examination study technique image radiograph radiographic radiology x ray film view projection scan ct
ap pa ultrasound portable supine erect upright semi decubitus inspiration inspiratory expiration rotate rotation exposure limit suboptimal
artifact overlying overlie superimposed project position placement tip lead wire clip stent prosthesis monitor electrode enteric svc
subclavian jugular remove removal place cabg bypass graft lobectomy cholecystectomy transplant treatment therapy healed healing fusion
negative positive overall mainly predominant partial complete incompletely significant range except apart given associated adjacent
underlying symmetric asymmetric midline greater versus vs describe end need use nothing phantom drawn drawing synthetic skin obesity body
ventilator lordotic oblique correspond cervical lumbar disc endplate curvature sequelae redemonstrate obstructive obstruction pattern
dilate blunt coronary outside foreign pectus caliber unfold relative chf mitral incidental fragment suture shape renal obscure
distribution benign neoplasm traumatic flatten junction favour kidney hepatic splenic thyroid brain white black dark bright opaque cavity
""" + " ".join([*KNOWN, *SIZES, *SEVERITIES, *SIDES, *MORPHOLOGIES, *itertools.chain(*PHRASES.values(), *SYNONYMS.values(),
                                                                      *(region.words for region in LOCATIONS.values()))]).lower()))
_ENDINGS = (("ies", "y"), ("es", ""), ("es", "is"), ("s", ""), ("ed", ""), ("d", ""), ("ing", ""), ("ing", "e"), ("ly", ""), ("al", ""))
_BEGINNINGS = re.compile(r"(?:hyper|hypo|non|post|pre|re|un|multi|sub|supra|infra|retro|intra|inter|para|peri|thoraco|dextro|levo)(?=.{4})")
_FOREIGN = frozenset(re.findall("[a-z]+", """
der die das und mit ohne kein keine keinen nicht ein eine einem beim vom zum links rechts lunge lungen herz erguss ist sind nachweis
het een geen van le la les des du de une et est sont sans avec pas aucun aucune gauche droit droite poumon coeur signe el los las y
sin con en del se izquierdo izquierda derecho derecha derrame pulmonar corazon com sem na nos da dos uma esquerdo esquerda direito
direita pulmao coracao il lo gli di della nel senza versamento sinistro destro destra sinistra cuore polmone zonder"""))
"""Words that other languages than English use in reports, and that English reports do not."""
_FOREIGN_END = re.compile(r"(?:cion|ciones|cao|coes|zione|zioni|[hk]eit|ung|ungen|lich|isch|iques?|eux|aux|euse|mente|dade?|tic[ao]s?|"
                          r"ad[ao]s?|ales?|ares|ite|rax|galia)$")


def check_text(text: str, *, file: str | Path | None = None, row: int | None = None, extra_words: Collection[str] = frozenset()) -> str:
    """The description with single spaces, if it is one in English that an encoder can be asked to understand.

    Refuses with an `InputError` what is not text, more than 200 words, control characters, and text of which fewer than half of the words
    are known, or fewer than four in five where words or endings of other languages are among them. Numbers, words with digits and the
    `XXXX` and `___` of de-identified reports do not count. `extra_words` are further words, such as findings that a data set declares.

    >>> check_text("small  left pleural effusion,\\n2 cm")
    'small left pleural effusion, 2 cm'
    """
    if not isinstance(text, str):
        raise InputError(f"the description is {type(text).__name__}, not text", file=file, row=row, remedy="write words, or leave it empty")
    broken = next((sign for sign in text if sign not in "\t\n\r" and (unicodedata.category(sign)[0] == "C" or sign == "\ufffd")), "")
    if broken:
        raise InputError(f"the description has the character U+{ord(broken):04X}, which is not text", file=file, row=row,
                         remedy="save the file as UTF-8 text")
    text = " ".join(text.split())
    if (number := len(text.split())) > MAX_WORDS:
        raise InputError(f"the description has {number:,} words", file=file, row=row, remedy=f"keep to {MAX_WORDS} words")
    tokens = re.findall(r"\w+(?:['’]\w+)*", text.lower().replace("_", " "))
    words = [word for word in tokens if not re.search(r"\d", word) and word.strip("x")]
    own = {part for extra in extra_words for part in re.findall(r"[^\W_]+", extra.lower())}
    unknown = [word for word in words if word not in own and not _is_known(word)]
    foreign = any(word in _FOREIGN or not word.isascii() or _FOREIGN_END.search(word[-10:]) for word in unknown)
    if (text and not tokens) or len(words) - len(unknown) < (0.8 if foreign else 0.5) * len(words):
        shown = ", ".join(repr(word[:30]) for word in dict.fromkeys(unknown[:5])) or repr(text[:30])
        raise InputError(f"{len(unknown)} of {len(words)} words of the description are not known, such as {shown}", file=file, row=row,
                         remedy="describe the image in the English of radiology")
    return text


def _is_known(word: str) -> bool:
    """Whether a word, or what is left of it without a usual ending or beginning, is in the tables."""
    word = re.sub(r"['’].*", "", word[:40])
    forms = (word, _BEGINNINGS.sub("", word, count=1))
    return word not in _FOREIGN and any(form in _WORDS or any(form.endswith(end) and form.removesuffix(end) + instead in _WORDS
                                                              for end, instead in _ENDINGS) for form in forms)


def parse_text(text: str, *, allow: Iterable[str] = ()) -> tuple[Statement, ...]:
    """Read what a description or report states, in the order of the text; `allow` are findings beyond the vocabulary.

    Rules, not a model: a negation or a doubt reaches from its word to the end of the list that follows (after NegEx, Chapman et
    al. 2001); side, size, severity and place belong to the nearest finding of their clause. `docs/reference/text.md` says how
    often that is right.

    >>> [(s.finding, s.stated.value, s.side) for s in parse_text("Small left effusion. No pneumothorax or nodule.")]
    [('Effusion', 'present', 'left'), ('Pneumothorax', 'absent', ''), ('Nodule', 'absent', '')]
    """
    phrases = _phrases(tuple(allow))
    return tuple(statement for sentence in _sentences(text) for statement in _read(sentence, _mentions(sentence, phrases)))


def labels_of(statements: Iterable[Statement]) -> dict[str, Stated]:
    """One statement a finding, as a label table has them: present outdoes uncertain, which outdoes absent.

    A text may call a chest without acute disease normal and yet name an old finding; then `No Finding` is left out.

    >>> labels_of(parse_text("no effusion, possible nodule on the left"))
    {'Effusion': <Stated.ABSENT: 'absent'>, 'Nodule': <Stated.UNCERTAIN: 'uncertain'>}
    """
    order = (Stated.ABSENT, Stated.UNCERTAIN, Stated.PRESENT)
    labels: dict[str, Stated] = {}
    for statement in statements:
        labels[statement.finding] = max(labels.get(statement.finding, Stated.ABSENT), statement.stated, key=order.index)
    diseases = (stated for name, stated in labels.items() if name != NO_FINDING and name not in NOT_A_FINDING_OF_DISEASE)
    if labels.get(NO_FINDING) is Stated.PRESENT and Stated.PRESENT in diseases:
        del labels[NO_FINDING]
    return labels


@functools.lru_cache(maxsize=64)
def _phrases(allow: tuple[str, ...]) -> dict[str, list[tuple[re.Pattern[str], str]]]:
    """First word -> expressions of the phrases that begin with it, the longest first, and their findings; empty for other things."""
    findings = {_spaced(phrase): "" for phrase in _OTHER_THINGS}
    for name in (*KNOWN, *allow):
        if name != NO_FINDING:
            findings |= {_spaced(phrase): name for phrase in (name, *SYNONYMS.get(name, ()), *PHRASES.get(name, ()))}
    table: dict[str, list[tuple[re.Pattern[str], str]]] = {}
    for phrase in sorted(findings, key=len, reverse=True):
        words = re.escape(phrase).replace(r"\ \*", r"(?: (?!with|normal|no\b)[a-z]+){0,5}?")
        table.setdefault(phrase.split()[0], []).append((re.compile(words + r"\b"), findings[phrase]))
    return table


def _mentions(sentence: str, phrases: Mapping[str, Sequence[tuple[re.Pattern[str], str]]]) -> list[_Mention]:
    """Where findings stand in a sentence, from left to right, without overlap."""
    mentions, end = [], 0
    for word in re.finditer(r"[a-z0-9]+", sentence):
        matches = ((expression.match(sentence, word.start()), finding) for expression, finding in phrases.get(word[0], ()))
        match, finding = next((found for found in matches if found[0]), (None, "")) if word.start() >= end else (None, "")
        if match:
            end = match.end()
            mentions += [_Mention(finding, match.start(), end)] if finding else []
    return mentions


def _spaced(text: str) -> str:
    """Lower case, single spaces, no hyphens; commas and brackets as ` , `."""
    text = re.sub(r"[()\[\],]+", " , ", text.lower().replace("*", " * "))
    text = " ".join(re.sub(r"[^a-z0-9,.*]+", " ", text).split())
    return _ABBREVIATED.sub(lambda match: _ABBREVIATIONS[match[0]], text)


_ABBREVIATED = re.compile(r"\b(?:" + "|".join(_ABBREVIATIONS) + r")\b")


def _sentences(text: str) -> list[str]:
    parts = re.split(r"[.;!?]+(?=\s|$)|\n", text)
    return [sentence for part in parts if (sentence := _spaced(part).strip(" ,."))]


@dataclass(slots=True)
class _Mention:
    """A finding's place in a sentence and what is known of it so far."""

    finding: str
    start: int
    end: int
    stated: Stated = Stated.PRESENT
    sides: set[str] = field(default_factory=set)
    ranges: dict[str, Range] = field(default_factory=dict)
    location: str = ""
    morphology: tuple[str, ...] = ()

    def statement(self) -> Statement:
        side = "both" if len(self.sides) > 1 else "".join(self.sides)
        return Statement(finding=self.finding, stated=self.stated, side=side, size=self.ranges.get("size"),
                         severity=self.ranges.get("severity"), location=self.location, morphology=self.morphology)


def _read(sentence: str, mentions: list[_Mention]) -> list[Statement]:
    """Statements of one sentence."""
    found = [Statement(finding=NO_FINDING, stated=stated) for expression, stated in
             ((_NORMAL, Stated.PRESENT), (_ABNORMAL, Stated.ABSENT)) if expression.search(sentence)][-1:]
    if _NORMAL_HEART.search(sentence):
        found.append(Statement(finding="Cardiomegaly", stated=Stated.ABSENT))
    if mentions:
        _mark_stated(mentions, sentence)
        _mark_details(mentions, sentence)
    return found + [mention.statement() for mention in mentions]


def _mark_stated(mentions: Sequence[_Mention], sentence: str) -> None:
    """Find out which mentions are denied and which are doubted."""
    rest = _PSEUDO.sub(_blank, sentence)
    after: list[tuple[Stated, list[_Mention]]] = []
    for expression, stated in ((_DOUBT_AFTER, Stated.UNCERTAIN), (_ABSENT_AFTER, Stated.ABSENT)):
        for match in expression.finditer(rest):
            listed = _listed_before(mentions, match, rest)
            if listed:
                after.append((stated, listed))
                rest = rest[:match.start()] + _blank(match) + rest[match.end():]
    for match in _DOUBT_BEFORE.finditer(rest):
        end = min([len(rest), *(m.start() for m in re.finditer(r" ,| and (?!or\b)| no | without ", rest) if m.start() >= match.end()),
                   _scope_end(rest, match.end())])
        near = [m for m in mentions if match.start() < m.end <= end]
        if match[0] in ("versus", "vs"):
            near += [m for m in mentions if m.end <= match.start()][-1:]
        for mention in near:
            mention.stated = Stated.UNCERTAIN
    for match in _ABSENT_BEFORE.finditer(_DOUBT_BEFORE.sub(_blank, rest)):
        end = _scope_end(rest, match.end())
        for mention in mentions:
            if match.start() < mention.end <= end:
                mention.stated = Stated.ABSENT
    for stated, listed in reversed(after):
        for mention in listed:
            mention.stated = stated


def _blank(match: re.Match[str]) -> str:
    return "_" * len(match[0])


def _listed_before(mentions: Sequence[_Mention], cue: re.Match[str], sentence: str) -> list[_Mention]:
    """The mentions that a word behind them is about: the last before it, and the list that it ends (`A, B or C is absent`)."""
    before = [mention for mention in mentions if mention.end <= cue.start()]
    if not before or len(sentence[before[-1].end:cue.start()].split()) > 6 or _SCOPE_ENDS.search(sentence, before[-1].end, cue.start()):
        return []
    listed = [before.pop()]
    several = cue[0].startswith(("are ", "were ", "have "))
    while before:
        between = sentence[before[-1].end:listed[-1].start]
        several = several or bool(re.search(r"\b(?:or|nor)\b", between))
        if not several or len(between.split()) > 5 or not re.search(r",|\b(?:and|or|nor)\b", between) or _SCOPE_ENDS.search(between):
            break
        listed.append(before.pop())
    return listed


def _scope_end(sentence: str, start: int) -> int:
    """Where a denial that begins at `start` stops: at `but` and the like, or where a new item begins after the list."""
    stop = _SCOPE_ENDS.search(sentence, start)
    end = stop.start() if stop else len(sentence)
    for item in _NEW_ITEM.finditer(sentence, start, end):
        following = _ABSENT_BEFORE.split(sentence[item.end():end], maxsplit=1)[0]
        if _DOUBT_BEFORE.match(sentence, item.end()) or not re.search(r"\b(?:or|nor)\b", following):
            return item.start()
    return end


_PLACES = {word: name for name, region in LOCATIONS.items() for word in region.words}
_DETAIL = re.compile(r"\b(?:" + "|".join(sorted({*SIDES, *_PLACES, *SIZES, *SEVERITIES, *MORPHOLOGIES}, key=len, reverse=True)) + r")\b")
_BESIDE_DETAILS = frozenset(re.findall("[a-z]+", """in on at within along near of the a an and or but side sides lung lungs hemithorax
    chest aspect more greater than mostly worse largest size severity is it are which also seen"""))


def _mark_details(mentions: Sequence[_Mention], sentence: str) -> None:
    """Give side, size, severity and place to the nearest mention of the clause."""
    borders = [0, *(match.start() for match in _CHUNK.finditer(sentence)), len(sentence)]
    details = list(_DETAIL.finditer(sentence))
    for start, end in itertools.pairwise(borders):
        here = [mention for mention in mentions if mention.start < end and mention.end > start]
        inside = [detail for detail in details if start <= detail.start() < end]
        if not here and inside:
            here = _owner_elsewhere(mentions, sentence, start, end)
        for detail in inside if here else ():
            _give(min(here, key=lambda m: max(m.start - detail.end(), detail.start() - m.end, 0)), detail)


def _owner_elsewhere(mentions: Sequence[_Mention], sentence: str, start: int, end: int) -> list[_Mention]:
    """Whose details stand in a clause of their own, as in `on the right, a nodule` and `effusion, small`."""
    words = re.sub(r"^(?: ?,|and|or|but|with|nor)+ ", "", _DETAIL.sub("", sentence[start:end])).split()
    if any(word.isalpha() and word not in _BESIDE_DETAILS for word in words):
        return []
    before, behind = [m for m in mentions if m.end <= start], [m for m in mentions if m.start >= end]
    leads = sentence[end:].startswith(("and ", "or ")) and not set(words) & {"in", "on", "at", "within"}
    return behind[:1] if behind and (not before or leads) else before[-1:]


def _give(mention: _Mention, detail: re.Match[str]) -> None:
    word, inside = detail[0], mention.start <= detail.start() < mention.end
    if word in SIDES and not inside:
        mention.sides |= {"left", "right"} if SIDES[word] == "both" else {SIDES[word]}
    if word in _PLACES and not inside:
        mention.location = mention.location or _PLACES[word]
    if word in MORPHOLOGIES and not inside:
        mention.morphology += (word,)
    for kind, table in (("size", SIZES), ("severity", SEVERITIES)):
        if word in table:
            kind = "size" if mention.finding in SIZED_BY_DEGREE else kind
            low, high = mention.ranges.get(kind, table[word])
            mention.ranges[kind] = (min(low, table[word][0]), max(high, table[word][1]))
