"""More training images for a base model: lesions inserted into training images without them, with exact masks, places and labels.

  python bench/release/lesion_images.py --prepared base/prepared --out base/lesions --num Nodule=300 Mass=150 Effusion=150

--out gets inserted/FINDING/ (see `synthorax insert`; images of patients, which never leave), images/, where every real image keeps its
split and the inserted ones train, and prepared/, from which the stage base-128-lesions learns. A call that was stopped goes on. A finding
that nothing inserts is said and left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import synthorax as sx
from synthorax.data.dataset import FACTS_NAME, TABLE_NAME, Dataset, copy_files, digest_of, read_dataset, write_dataset
from synthorax.data.prepared import Prepared
from synthorax.errors import SynthoraxError, UsageError
from synthorax.folders import claimed
from synthorax.rng import derive
from synthorax.steps.insertion.config import InsertConfig
from synthorax.types import LabelPolicy, Study

SPLIT = (0.75, 0.1, 0.15)
NUM = {"Nodule": 300, "Mass": 150, "Effusion": 150, "Pneumothorax": 150, "Consolidation": 150}
"""inserted images of each finding: with the real ones, about one in four training images shows an inserted lesion"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Insert, join, prepare."""
    options = _options(arguments)
    try:
        prepared = Prepared.load(options.prepared)
        joined, left_out = with_lesions(prepared, options.out, num=options.num, seed=options.seed, lungs=options.lungs,
                                        threads=options.threads)
    except SynthoraxError as error:
        print(f"lesion_images.py: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({"prepared": str(joined.path), "training images": len(joined.images("train")),
                      "of these real": len(prepared.images("train")), "left out": left_out}))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    def count(text: str) -> tuple[str, int]:
        finding, _, number = text.rpartition("=")
        return finding, int(number)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared folder of the real images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=count, nargs="+", default=list(NUM.items()), metavar="FINDING=N")
    parser.add_argument("--lungs", type=Path, help="another lung model than the one that ships")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    options.num = dict(options.num)
    return options


def with_lesions(prepared: Prepared, out: Path, *, num: Mapping[str, int] = NUM, seed: int = 0, lungs: Path | None = None,
                 threads: int | None = None) -> tuple[Prepared, dict[str, str]]:
    """The real images as they are split and the inserted ones as training images, prepared; and why findings were left out."""
    inserted: list[Dataset] = []
    left_out: dict[str, str] = {}
    for finding, number in num.items():
        try:
            made = sx.insert(prepared, finding=finding, out=out / "inserted" / finding, config=InsertConfig(num=number), lungs=lungs,
                             seed=derive(seed, "training lesions", finding), threads=threads)
        except UsageError as error:
            left_out[finding] = str(error)
            continue
        inserted.append(made.dataset)
    joined = join(prepared, inserted, out / "images")
    policy = LabelPolicy(unlisted="not stated")
    return sx.prepare(joined, size=prepared.size, out=out / "prepared", split=SPLIT, seed=seed, policy=policy), left_out


def join(prepared: Prepared, inserted: Sequence[Dataset], out: Path) -> Dataset:
    """A dataset folder of every prepared image, its split stated, and of inserted ones, each set of these in a folder of its own."""
    inputs = {"prepared images": prepared.digest, "inserted": [digest_of(dataset) for dataset in inserted]}
    with claimed(out, kind="images with lesions", inputs=inputs) as folder:
        if not folder.done:
            studies = [copy_files(study, source=prepared.source, out=folder.work) for study in prepared.studies]
            for number, dataset in enumerate(inserted):
                place = f"inserted-{number}"
                studies += [_in_place(copy_files(study, source=dataset.path, out=folder.work / place), place) for study in dataset.studies]
            labels = sorted({*prepared.findings, *(name for dataset in inserted for name in dataset.findings)})
            write_dataset(folder.work, studies, name="open images with inserted lesions", synthetic=False,
                          facts={"labels": labels, "mixed": bool(inserted), "sources": [origin.to_dict() for origin in prepared.sources]})
            folder.deliver(last=(TABLE_NAME, FACTS_NAME))
    return read_dataset(out)


def _in_place(study: Study, place: str) -> Study:
    """The row with the names of its files in the folder `place`."""
    masks = {kind: tuple(path and f"{place}/{path}" for path in paths) for kind, paths in study.masks.items()}
    return replace(study, file_name=f"{place}/{study.file_name}", masks=masks, split="train",
                   study_id=f"{place}-{study.study_id}" if study.study_id else "")


if __name__ == "__main__":
    sys.exit(main())
