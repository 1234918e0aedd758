"""Where images come from and on which terms: for the cards of models, and kept when several dataset folders become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from synthorax.config import read_record
from synthorax.data.dataset import (
    FACTS_NAME,
    TABLE_NAME,
    Dataset,
    copy_files,
    digest_of,
    read_dataset,
    write_dataset,
)
from synthorax.data.masks import PSEUDO
from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import InputError
from synthorax.files import safe_name
from synthorax.folders import claimed
from synthorax.types import Stated, Study

NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """One data set that images come from."""

    name: str
    images: int
    patients: int
    licence: str
    """the terms as the set states them, several with `; `"""
    attribution: str = ""
    """whom to name, and where they published"""
    digest: str = ""
    """SHA-256 over the table and every file of the set"""

    def to_dict(self) -> dict[str, str | int]:
        """JSON-ready."""
        return asdict(self)


def origins_of(dataset: Dataset) -> tuple[Origin, ...]:
    """The data sets that a dataset folder is made of: what its `dataset.json` lists under `sources`, else the folder itself.

    Its terms are `licence` in `dataset.json`, else what the column `licence` says; nothing is guessed.
    """
    listed = dataset.facts.get("sources")
    if listed:
        return read_record(tuple[Origin, ...], listed, what="sources", where=dataset.path / FACTS_NAME, remedy="correct the file")
    rows = sorted({study.extra.get("licence", "") or NOT_STATED for study in dataset.studies})
    licence = str(dataset.facts.get("licence") or "; ".join(rows))
    return (Origin(name=dataset.name, images=len(dataset), patients=len({study.patient_id for study in dataset.studies}), licence=licence,
                   attribution=str(dataset.facts.get("attribution", "")), digest=str(dataset.facts.get("digest", ""))),)


def merge_datasets(folders: Sequence[str | Path], out: Path, *, name: str, attributions: dict[str, str] | None = None) -> Dataset:
    """Several dataset folders as one in `out`, each in a folder of its own; the same sets again give the same folder.

    Patients of different sets stay different, and an image without a site gets the name of its set. A finding that a set declares but a
    labelled image of it does not list is written as absent; one that the set does not know is left unstated, so prepare the result
    with `LabelPolicy(unlisted="not stated")`. Masks that a network drew are left out, because the terms of what it learned from go
    with them. `attributions`, by the name of a set, fill in where `dataset.json` has none. Raises InputError.
    """
    datasets = {Path(folder): read_dataset(folder) for folder in folders}
    attributions = attributions or {}
    inputs = {"sets": [digest_of(dataset) for dataset in datasets.values()], "name": name, "attributions": attributions}
    with claimed(out, kind="a merged set", inputs=inputs) as claim:
        if not claim.done:
            _merge(datasets, claim.work, name=name, attributions=attributions)
            claim.deliver(last=(TABLE_NAME, FACTS_NAME))
    return read_dataset(out)


def _merge(datasets: Mapping[Path, Dataset], out: Path, *, name: str, attributions: Mapping[str, str]) -> None:
    """Write all sets into the empty folder `out`."""
    studies: list[Study] = []
    origins: list[Origin] = []
    labels: set[str] = set()
    for folder, dataset in datasets.items():
        if dataset.name in {origin.name for origin in origins}:
            raise InputError(f"two sets are called '{dataset.name}'", file=folder / FACTS_NAME, remedy="rename one of them")
        if dataset.facts.get("synthetic"):
            raise InputError("is a set of synthetic images", file=folder, remedy="a model that ships learns from real images alone")
        (origin,) = origins_of(dataset)
        origins.append(replace(origin, attribution=origin.attribution or attributions.get(dataset.name, ""),
                               digest=digest_of(dataset)))
        labels |= set(dataset.findings)
        for study in dataset.studies:
            kept = replace(study, masks={kind: paths for kind, paths in study.masks.items() if not kind.startswith(PSEUDO)})
            place = safe_name(dataset.name)
            studies.append(_rename(copy_files(kept, source=dataset.path, out=out / place), dataset, place))
    write_dataset(out, studies, name=name, synthetic=False,
                  facts={"labels": sorted(labels), "licence": "; ".join(sorted({origin.licence for origin in origins})),
                         "sources": [origin.to_dict() for origin in origins]})


def _rename(study: Study, dataset: Dataset, place: str) -> Study:
    """The image as it is called among images of other sets, in the folder `place`."""
    masks = {kind: tuple(path and f"{place}/{path}" for path in paths) for kind, paths in study.masks.items()}
    return replace(study, file_name=f"{place}/{study.file_name}", masks=masks, site=study.site or dataset.name, split="",
                   patient_id=f"{dataset.name}:{study.patient_id}" if study.patient_id else "", labels=_complete(study, dataset.findings))


def _complete(study: Study, declared: Sequence[str]) -> dict[str, Stated]:
    """The image's statements with every other finding of its set as absent, unless it states nothing, or no more than `!No Finding`."""
    labels = dict(study.labels)
    if not labels or labels.get(NO_FINDING) is Stated.PRESENT or set(labels) == {NO_FINDING}:
        return labels
    return labels | {name: Stated.ABSENT for name in declared if name not in labels and name != NO_FINDING}
