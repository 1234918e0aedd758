"""Checking for poisoned images: flag those that would poison a training, say why, and leave a folder without them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from synthorax.data.dataset import COUNTED_FACTS, Dataset, digest_of, write_dataset
from synthorax.data.prepared import Prepared, load_images
from synthorax.data.tables import table_bytes
from synthorax.errors import InputError
from synthorax.evaluation.monitoring.poison import FALSE_ALARM_RATE, REASONS, PoisonCheck, PoisonConfig, find_poisoned
from synthorax.files import read_json_object, write_atomic, write_json
from synthorax.folders import claimed
from synthorax.former_names import present_place
from synthorax.progress import Progress, portion, quiet
from synthorax.steps.planning.plan import STATED_ONLY
from synthorax.steps.screening.screen import common_size


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedSet:
    """How many images were flagged, and for what."""

    num_images: int
    num_flagged: int
    reasons: dict[str, int]
    thresholds: dict[str, float]
    false_alarms: dict[str, Any]
    judges: tuple[dict[str, str], ...]
    table: Path
    clean: Path | None = None

    @property
    def suspicious(self) -> bool:
        """Whether more images are flagged than the rate of false alarms explains (binomial, one-sided, p below 0.01)."""
        return bool(binomtest(self.num_flagged, self.num_images, FALSE_ALARM_RATE, alternative="greater").pvalue < 0.01)

    def __str__(self) -> str:
        why = ", ".join(f"{count} {name}" for name, count in self.reasons.items()) or "nothing suspect"
        return (f"flagged {self.num_flagged} of {self.num_images} images ({why}); of {self.false_alarms['images']} images trusted to be "
                f"clean "
                f"{self.false_alarms['value']:.1%} would be\ntable  {self.table}") + (f"\nclean  {self.clean}" if self.clean else "")

    def to_dict(self) -> dict[str, Any]:
        """Counts, thresholds and judges, JSON-ready."""
        return {"images": self.num_images, "flagged": self.num_flagged, "reasons": self.reasons, "thresholds": self.thresholds,
                "false_alarms": self.false_alarms, "judges": list(self.judges), "table": str(self.table),
                "clean": str(self.clean) if self.clean else None}


def check_dataset(suspects: Dataset, prepared: Prepared, *, out: Path, drop: bool = False, config: PoisonConfig | None = None,
                progress: Progress = quiet) -> CheckedSet:
    """Hold a dataset folder of synthetic or new real images against training images that are trusted to be clean; see `find_poisoned`.

    Leaves flagged.csv and poisoning.json in `out`, and with `drop` a dataset folder `out`/clean without the flagged images. A finished
    result of the same inputs is returned as it is. Raises InputError if `out` holds anything else or `drop` would leave nothing.
    """
    config = config or PoisonConfig()
    inputs = {"images": digest_of(suspects), "prepared images": prepared.digest, "drop": drop, "settings": asdict(config)}
    with claimed(out, kind="a vetting", inputs=inputs) as folder:
        if not folder.done:
            _check(suspects, prepared, out=folder.work, drop=drop, config=config, progress=progress)
            folder.deliver(last=("poisoning.json",))
    record = read_json_object(present_place(out, "poisoning.json"), {"images": int, "flagged": int, "reasons": dict, "thresholds": dict,
                                                     "false_alarms": dict,
                                               "judges": list}, remedy="delete the folder and call the same command again")
    return CheckedSet(num_images=record["images"], num_flagged=record["flagged"], reasons=record["reasons"],
                      thresholds=record["thresholds"], false_alarms=record["false_alarms"], judges=tuple(record["judges"]),
                      table=out / "flagged.csv", clean=out / "clean" if drop else None)


def _check(suspects: Dataset, prepared: Prepared, *, out: Path, drop: bool, config: PoisonConfig, progress: Progress) -> None:
    """Vet into the empty folder `out`."""
    size = common_size(suspects, prepared)
    trusted = prepared.images("train", size=size)
    policy = STATED_ONLY if suspects.facts.get("synthetic") else prepared.policy
    images = load_images(suspects, size=size, findings=trusted.findings, policy=policy, progress=portion(progress, 0, 0.1))
    checked = find_poisoned(images, trusted, config=config, progress=portion(progress, 0.1, 0.9))
    flagged = checked.flagged
    rows = [_row(images.studies[row].file_name, checked, row) for row in range(len(images)) if flagged[row]]
    columns = ("file_name", "reasons", *(f"{name}{what}" for name in REASONS for what in ("_score", "_threshold")))
    clean = out / "clean" if drop else None
    if clean is not None:
        kept = [study for study, bad in zip(suspects.studies, flagged, strict=True) if not bad]
        if not kept:
            raise InputError(f"all {len(images)} images were flagged", file=suspects.path,
                             remedy="look at flagged.csv without --drop: perhaps they are of another kind than the trusted images")
        inherited = {key: value for key, value in suspects.facts.items()
                     if key not in COUNTED_FACTS}
        judges = [*inherited.pop("judges", ()), *checked.judges]
        write_dataset(clean, kept, name=suspects.name, synthetic=bool(suspects.facts.get("synthetic")), source=suspects.path,
                      facts={**inherited, "judges": judges}, progress=portion(progress, 0.9, 1))
    write_atomic(out / "flagged.csv", table_bytes(columns, rows))
    counts = Counter(name for row in range(len(images)) for name in checked.reasons(row))
    write_json(out / "poisoning.json", {"images": len(images), "flagged": int(flagged.sum()), "reasons": dict(counts),
                                  "thresholds": checked.thresholds, "false_alarms": checked.false_alarms, "judges": list(checked.judges)})
    progress(1.0, f"{int(flagged.sum())} of {len(images)} images flagged")


def _row(file_name: str, checked: PoisonCheck, row: int) -> dict[str, str]:
    scores = {f"{name}_score": f"{checked.scores[name][row]:.4f}" for name in REASONS}
    thresholds = {f"{name}_threshold": f"{checked.thresholds[name]:.4f}" for name in REASONS}
    return {"file_name": file_name, "reasons": "; ".join(REASONS[name] for name in checked.reasons(row)), **scores, **thresholds}
