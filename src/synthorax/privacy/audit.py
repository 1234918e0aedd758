"""The audit: do synthetic images copy training images, betray who was trained on, or pass for a training patient?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.derived import told_apart
from synthorax.errors import InputError
from synthorax.evaluation.report.contact_sheets import contact_sheet, png_bytes
from synthorax.evaluation.report.record import Dimension
from synthorax.evaluation.statistics.roc import AurocInterval, wilson
from synthorax.judges.cross_fit import patient_folds
from synthorax.judges.features import FeatureSpace
from synthorax.privacy.config import AuditConfig as AuditConfig
from synthorax.privacy.copies import CopyCheck, CopyDetector, FalseAlarms
from synthorax.privacy.membership import distance_auroc, one_image_each
from synthorax.privacy.planted import WAYS, plant
from synthorax.privacy.registration import Gallery
from synthorax.privacy.reidentification import Reidentification, reidentify
from synthorax.progress import Progress, portion, quiet
from synthorax.rng import derive
from synthorax.types import ImageSet, Score

MIN_FOLLOW_UP_PAIRS = 20
"""same-patient pairs from which a band is calibrated"""
SHEET_PAIRS = 12
CARD_COLUMNS = ("model", "model_digest", "seed", "plan_row", "sampler", "steps", "guidance")


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What the audit found: the report's privacy dimension, a card for each image, and why a release should not go out."""

    dimension: Dimension
    cards: tuple[dict[str, Any], ...]
    """one for each synthetic image, JSON-ready"""
    judges: tuple[dict[str, str], ...]
    figures: Mapping[str, bytes]
    refusals: tuple[str, ...]
    """reasons for which the gate says no; empty if it says yes"""


Attack = Callable[[NDArray[np.intp], NDArray[np.intp]], tuple[AurocInterval, str]]
"""Takes rows of training and of held-out images, gives the AUROC of telling them apart by a model's loss, and how it was done"""


def audit_images(train: ImageSet, held_out: ImageSet, synthetic: ImageSet, *, features: FeatureSpace, config: AuditConfig,
                loss_attack: Attack | str = "no diffusion model was given (--model)", facts: Mapping[str, Any] | None = None,
                progress: Progress = quiet) -> Audit:
    """Copies in three spaces, planted copies, membership and re-identification; `loss_attack` is a reason where there is none.

    Held-out images are divided by patient: one half sets thresholds, the other tests them. `facts` is the synthetic set's
    dataset.json, for the cards. Images that are derived from a patient's are near-duplicates by construction: they are counted apart, and
    shut the gate. Raises `InputError` where there are too few held-out images to set any threshold, or no image is left to audit.
    """
    synthetic, derived = told_apart(synthetic)
    if not len(synthetic):
        raise InputError(f"all {len(derived)} images are derived from patients' images, who can be recognised in them: there is nothing to "
                         "audit", remedy="keep the set in house, and audit images that a model generated")
    half = patient_folds(held_out.patients(), folds=2, seed=config.seed)
    progress(0.0, "looking for copies")
    detector = CopyDetector.fit(train.pixels, held_out.pixels[half == 0], features=features, false_alarm_rate=config.false_alarm_rate)
    alarms = detector.false_alarms(held_out.pixels[half == 1])
    progress(0.15, "looking for copies")
    check = detector.check(synthetic.pixels)
    progress(0.25, "planting copies")
    scores = [*_copy_scores(check, alarms, train=train, synthetic=synthetic), *_planted_scores(detector, alarms, train, config=config)]
    progress(0.5, "same-patient images")
    band, band_score = _same_patient_band(train, held_out, check, seed=config.seed)
    scores += band_score
    progress(0.55, "membership")
    rows, rows_held = one_image_each(train.patients(), seed=config.seed), np.flatnonzero(half == 1)
    rows_held = rows_held[one_image_each(held_out.patients()[rows_held], seed=config.seed)]
    members, skipped = _membership(train, held_out, synthetic, rows, rows_held, np.flatnonzero(half == 0), features, loss_attack)
    scores += members
    matched: Reidentification | None = None
    judges = [{"name": features.name, "digest": features.digest}]
    try:
        matched = reidentify(train, held_out, synthetic, config=config.judge, seed=config.seed, false_alarm_rate=config.false_alarm_rate,
                             progress=portion(progress, 0.65, 0.98))
        scores += _match_scores(matched, train, held_out, synthetic)
        judges.append({"name": matched.judge.name, "digest": matched.judge.digest})
    except InputError as error:
        skipped["re-identification"] = str(error)
    progress(0.98, "cards")
    plain = check.similarity > (1 + max(detector.highest_real, detector.threshold)) / 2
    refusals = _refusals(check, alarms, members, matched, plain, config=config)
    if len(derived):
        refusals.append(f"{len(derived)} images are derived from patients' images, and the patients can be recognised in them")
    extra = {"copy_threshold": detector.threshold, "copy_thresholds": detector.thresholds, "held_out_to_calibrate": int((half == 0).sum()),
             "same_patient_band": band, "plain_copies": [synthetic.studies[i].file_name for i in np.flatnonzero(plain)],
             "gate": {"passed": not refusals, "reasons": refusals}, "not_measured": skipped}
    extra |= {"derived_from_patients": len(derived)} if len(derived) else {}
    cards = tuple(_cards(train, synthetic, check, detector, matched, facts or {}))
    progress(1.0, "audited")
    return Audit(dimension=Dimension("measured", scores=tuple(scores), extra=extra), refusals=tuple(refusals), judges=tuple(judges),
                 cards=cards, figures={"closest_pairs": _sheet(train, synthetic, check)})


def _copy_scores(check: CopyCheck, alarms: FalseAlarms, *, train: ImageSet, synthetic: ImageSet) -> list[Score]:
    note = f"floor: {alarms.num_images} real images of other patients by the same thresholds [{alarms.low:.3f}, {alarms.high:.3f}]"
    scores = [_rate("near_duplicate_rate", check.is_copy, n_real=len(train), floor=alarms.rate, note=note)]
    return scores + [_rate("near_duplicate_rate", way.is_copy, n_real=len(train), features=name)
                     for name, way in check.ways.items()]


def _planted_scores(detector: CopyDetector, alarms: FalseAlarms, train: ImageSet, *, config: AuditConfig) -> list[Score]:
    """Share of planted copies caught in each way of planting, at thresholds that call so many real images copies."""
    num = min(config.planted, len(train))
    rows = np.random.default_rng(derive(config.seed, "planted rows")).permutation(len(train))[:num]
    scores = [Score(metric="false_alarm_rate", value=alarms.rate, low=alarms.low, high=alarms.high, n_real=alarms.num_images,
                    n_synthetic=0, note="real images of other patients that were called copies")]
    for how in WAYS:
        caught = detector.check(plant(train.pixels[rows], how=how, seed=config.seed)).is_copy
        scores.append(_rate("planted_copies_caught", caught, n_real=len(train), group=how))
    return scores


def _same_patient_band(train: ImageSet, held_out: ImageSet, check: CopyCheck, *, seed: int) -> tuple[dict[str, Any], list[Score]]:
    """How alike two images of one patient are by registration, and how many synthetic images are more alike to a training image."""
    real = ImageSet.join([train, held_out])
    images, patients = real.pixels, real.patients()
    pairs = np.array([rows[:2] for rows in (np.flatnonzero(patients == name) for name in np.unique(patients)) if len(rows) > 1],
                     dtype=np.intp).reshape(-1, 2)
    if len(pairs) < MIN_FOLLOW_UP_PAIRS:
        return {"status": "uncalibrated", "reason": f"only {len(pairs)} patients have two images, and {MIN_FOLLOW_UP_PAIRS} are needed"}, []
    pairs = np.random.default_rng(derive(seed, "band")).permutation(pairs)[:100]
    likeness = Gallery.of(images[pairs[:, 1]]).fit(images[pairs[:, 0]], np.arange(len(pairs)))
    low, middle, high = (float(value) for value in np.quantile(likeness, [0.05, 0.5, 0.95]))
    band = {"status": "calibrated", "pairs": len(pairs), "low": low, "median": middle, "high": high}
    return band, [_rate("nearer_than_follow_up", check.similarity > middle, n_real=len(pairs),
                        features="registration", note=f"than the median of {len(pairs)} pairs of images of one patient, {middle:.2f}")]


def _membership(train: ImageSet, held_out: ImageSet, synthetic: ImageSet, rows: NDArray[np.intp], rows_held: NDArray[np.intp],
                reference: NDArray[np.intp], features: FeatureSpace, loss_attack: Attack | str) -> tuple[list[Score], dict[str, str]]:
    """Distance-based in two spaces, and loss-based where a model was given; one image a patient."""
    scores: list[Score] = []
    skipped: dict[str, str] = {}

    def add(name: str, measure: Callable[[], tuple[AurocInterval, str]]) -> None:
        try:
            value, how = measure()
        except InputError as error:
            skipped[f"membership, {name}"] = str(error)
            return
        scores.append(Score(metric="membership_auroc", value=value.auc, low=value.low, high=value.high, n_real=len(rows),
                            n_synthetic=len(synthetic), features=name, floor=0.5, note=f"{how}; against {len(rows_held)} held-out images"))

    gallery = Gallery.of(synthetic.pixels)
    spaces: dict[str, Callable[[Any], NDArray[np.float32]]] = {"whitened pixels": gallery.whitened, features.name: features}
    for name, space in spaces.items():
        vectors = space(train.pixels[rows]), space(held_out.pixels[rows_held]), space(synthetic.pixels), space(held_out.pixels[reference])
        add(name, lambda v=vectors: (distance_auroc(*v[:3], reference=v[3]), "distance to the nearest synthetic image"))  # type: ignore[misc]
    if isinstance(loss_attack, str):
        skipped["membership, loss"] = loss_attack
    else:
        attack = loss_attack
        add("denoising loss", lambda: attack(rows, rows_held))
    return scores, skipped


def _match_scores(found: Reidentification, train: ImageSet, held_out: ImageSet, synthetic: ImageSet) -> list[Score]:
    name = found.judge.name
    return [
        Score(metric="same_patient_auroc", value=found.validation.value, low=found.validation.low, high=found.validation.high,
              n_real=found.num_validated, n_synthetic=0, features=name,
              note=f"how good the judge is: pairs of {found.num_validated} held-out patients, learned from {found.judge.num_patients}"),
        Score(metric="patient_match_rate", value=found.synthetic.rate, low=found.synthetic.low, high=found.synthetic.high,
              n_real=len(train), n_synthetic=len(synthetic), features=name, floor=found.real.rate,
              note=f"floor: {found.real.num_images} real images of other patients [{found.real.low:.3f}, {found.real.high:.3f}]; "
                   f"of follow-ups the judge matches {found.followed.rate:.2f} [{found.followed.low:.2f}, {found.followed.high:.2f}]"),
    ]


def _refusals(check: CopyCheck, alarms: FalseAlarms, members: Sequence[Score], matched: Reidentification | None,
              plain: NDArray[np.bool_], *, config: AuditConfig) -> list[str]:
    """Why a release should not go out, each in a sentence."""
    refusals = []
    rate = float(check.is_copy.mean())
    if rate > alarms.high:
        refusals.append(f"{rate:.1%} of the images are near-duplicates, and of real images of other patients at most {alarms.high:.1%} "
                        f"would be")
    if plain.any():
        refusals.append(f"{int(plain.sum())} images are plain copies of a training image")
    for score in members:
        if score.low > 0.5 + config.membership_margin:
            refusals.append(f"{score.features} tells who was trained on: AUROC {score.value:.2f} [{score.low:.2f}, {score.high:.2f}]")
    if matched is not None and matched.synthetic.low > matched.real.high:
        refusals.append(f"{matched.synthetic.rate:.1%} of the images match a training patient, and of real images of others "
                        f"{matched.real.rate:.1%}")
    return refusals


def _cards(train: ImageSet, synthetic: ImageSet, check: CopyCheck, detector: CopyDetector, matched: Reidentification | None,
           facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each synthetic image its nearest training images in each space, its condition and seed, and what it was screened for."""
    cards = []
    for row, study in enumerate(synthetic.studies):
        near: dict[str, Any] = {
            name: {"training_image": train.studies[int(way.nearest_index[row])].file_name,
                   "similarity": round(float(way.similarity[row]), 5), "threshold": round(detector.thresholds[name], 5),
                   "is_copy": bool(way.is_copy[row])}
            for name, way in check.ways.items()}
        if matched is not None:
            likeness = float(matched.likeness[row])
            near[matched.judge.name] = {"training_image": train.studies[int(matched.nearest_index[row])].file_name,
                                        "similarity": round(likeness, 5), "threshold": round(matched.threshold, 5),
                                        "is_match": likeness > matched.threshold}
        card = {"file_name": study.file_name, "near_copy": bool(check.is_copy[row]), "nearest": near,
                "condition": _condition(study.extra.get("condition", ""))}
        card |= {name: study.extra[name] for name in CARD_COLUMNS if study.extra.get(name)}
        if "screening" in facts:
            screening = facts["screening"]
            card["screening"] = {"passed": True, "not_checked": screening.get("not_checked", {}),
                                 "judges": [judge["name"] for judge in facts.get("judges", ())]}
        cards.append(card)
    return cards


def _condition(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def _sheet(train: ImageSet, synthetic: ImageSet, check: CopyCheck) -> bytes:
    """The pairs nearest by registration, each synthetic image left of the training image that it resembles most."""
    order = np.argsort(-check.similarity)[:SHEET_PAIRS]
    nearest = check.ways["registration"].nearest_index[order]
    images = np.stack([image for own, other in zip(order, nearest, strict=True)
                      for image in (_eight_bit(synthetic.pixels[own]), _eight_bit(train.pixels[other]))])
    captions = [caption for row in order for caption in (f"synthetic  {check.similarity[row]:.2f}", "nearest training image")]
    return png_bytes(contact_sheet(images, columns=6, captions=captions, tile_px=max(128, images.shape[1])))


def _eight_bit(image: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    return (image // (257 if image.dtype == np.uint16 else 1)).astype(np.uint8)


def _rate(metric: str, called: NDArray[np.bool_], *, n_real: int, **more: Any) -> Score:
    low, high = wilson(int(called.sum()), len(called))
    return Score(metric=metric, value=float(called.mean()), low=low, high=high, n_real=n_real, n_synthetic=len(called),
                 **more)
