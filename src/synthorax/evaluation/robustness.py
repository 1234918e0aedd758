"""Does the result hold elsewhere: distances to each site of real films, and what corruption of the films does to them."""

from __future__ import annotations

import numpy as np

from synthorax.errors import InputError
from synthorax.evaluation.corruptions import CORRUPTIONS, corrupted
from synthorax.evaluation.fidelity import kid, kid_difference, kid_score
from synthorax.evaluation.report import Dimension
from synthorax.evaluation.sides import FEWEST_FILMS, FEWEST_PATIENTS, RealFilms, Seen
from synthorax.types import Films, Score

MOST_CORRUPTED = 64


def robustness(real: RealFilms, synthetic: Films, seen: Seen, *, seed: int, corruptions: bool = True) -> Dimension:
    """Scores by site and, unless left out, by corruption; skipped with the reason where neither can be had."""
    sites = site_distances(real, synthetic, seen, seed=seed)
    reasons = {} if sites else {"other sites": "the real films name fewer than two sites with enough held-out films"}
    try:
        if not corruptions:
            raise InputError("left out of a quick evaluation; run `synthorax evaluate` without --quick for it")
        moved = corruption_shifts(real, synthetic, seen, seed=seed)
    except InputError as error:
        moved, reasons = (), reasons | {"corruptions": str(error)}
    if not (sites or moved):
        return Dimension("skipped", reason="; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    return Dimension("measured", scores=(*sites, *moved), extra={"not_measured": reasons} if reasons else {})


def site_distances(real: RealFilms, synthetic: Films, seen: Seen, *, seed: int) -> tuple[Score, ...]:
    """KID of all synthetic films to the real films of each site; floor: of real films of the other sites to these."""
    site = {part: np.array([study.site for study in films.studies]) for part, films in (("held_out", real.held_out), ("train", real.train))}
    patients = real.held_out.patients()
    named = []
    for name in sorted(set(site["held_out"].tolist()) - {""}):
        rows = np.flatnonzero(site["held_out"] == name)
        if len(rows) >= FEWEST_FILMS and len(set(patients[rows])) >= FEWEST_PATIENTS:
            named.append((name, rows))
    if len(set(site["train"].tolist()) | set(site["held_out"].tolist())) < 2:
        return ()
    scores = []
    for name, rows in named:
        elsewhere = np.flatnonzero(site["train"] != name)
        floor = (seen.held_out[rows], seen.train[elsewhere]) if len(elsewhere) >= FEWEST_FILMS else None
        score = kid_score(seen.held_out[rows], seen.synthetic, floor_sets=floor, features_name=seen.space.name, seed=seed,
                          group=f"site {name}", real_patients=patients[rows])
        record = score.to_dict() | {"metric": "kid_to_site", "note": "; ".join(filter(None, (
            "all synthetic films against this site; floor: real films of other sites against it", score.note)))}
        scores.append(Score(**record))
    return tuple(scores)


def corruption_shifts(real: RealFilms, synthetic: Films, seen: Seen, *, seed: int) -> tuple[Score, ...]:
    """How much farther from real films each corruption carries the synthetic ones: KID afterwards less KID before, on the same films.

    The floor is the same corruption of as many real training films. A shift of nought means that this feature space does not see the
    corruption, so it could not see a generator that makes such films either.
    """
    if min(len(synthetic), len(real.train), len(real.held_out)) < FEWEST_FILMS:
        raise InputError(f"corruptions need {FEWEST_FILMS} films a side")
    rng = np.random.default_rng(seed)
    num = min(MOST_CORRUPTED, len(synthetic), len(real.train))
    made, known = (rng.permutation(len(films))[:num] for films in (synthetic, real.train))
    scores = []
    for name in CORRUPTIONS:
        after = seen.space(corrupted(synthetic.images[made], name, seed=seed))
        value, low, high = kid_difference(seen.held_out, seen.synthetic[made], after, real_patients=real.held_out.patients())
        of_real = seen.space(corrupted(real.train.images[known], name, seed=seed))
        floor = kid(seen.held_out, of_real) - kid(seen.held_out, seen.train[known])
        scores.append(Score(metric="kid_shift", value=value, low=low, high=high, better="lower", n_real=len(real.held_out),
                            n_synthetic=num, group=name, features=seen.space.name, floor=floor,
                            note="of these films after corruption less before; floor: the same of real training films"))
    return tuple(scores)
