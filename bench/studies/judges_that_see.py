"""What do judges see? A channelised observer and an untrained filter on real nodules, and which failures each feature space notices.

  python bench/studies/judges_that_see.py observer --jsrt jsrt/ --out seen/
  python bench/studies/judges_that_see.py detector --jsrt jsrt/ --inserted inserted/ --out seen/
  python bench/studies/judges_that_see.py spaces --real nih/ --out seen/

`--jsrt` is the JSRT dataset folder with lesion masks, `--inserted` one with lesion masks to train on, `--real` one of frontal images; all
of 256 px and 8 bits. JSRT is a test set here: nothing that ships learns from it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from synthorax.data.dataset import read_dataset
from synthorax.evaluation.metrics.distances import fid_64, kid_difference
from synthorax.evaluation.metrics.free_response import free_response, jafroc_interval, sensitivity_difference, sensitivity_interval
from synthorax.evaluation.statistics.bootstrap import counted_auroc, counted_bootstrap
from synthorax.files import write_json
from synthorax.judges.blob_filter import BlobFilter
from synthorax.judges.channelised_observer import Places, channel_values, train_observer
from synthorax.judges.features import load_features
from synthorax.judges.lesion_detector import DetectorConfig, train_detector
from synthorax.judges.marks import LesionBoxes, Marks
from synthorax.types import ImageSet, Masks

FOLDS = 5
SPACES = ("efficientnet-lite0", "scattering", "efficientnet-lite0:256", "scattering:256")
NUM_IMAGES = 100


def read(folder: Path) -> tuple[NDArray[np.uint8], LesionBoxes, NDArray[np.bool_], NDArray[np.str_]]:
    """Images, their lesions, their lungs (all of the image where there is no mask), and patients."""
    studies = read_dataset(folder).studies
    images = np.stack([_grey(folder / study.file_name) for study in studies])
    masks, index = [], np.full((len(studies), 1), Masks.NOT_STATED, dtype=np.int32)
    lungs = np.ones(images.shape, dtype=np.bool_)
    for row, study in enumerate(studies):
        if path := next(iter(study.masks.get("lesion_mask", ())), ""):
            index[row, 0] = len(masks)
            masks.append(np.where(_grey(folder / path) > 127, 255, 0).astype(np.uint8))
        if path := next(iter(study.masks.get("lung_mask", ())), ""):
            lungs[row] = _grey(folder / path) > 127
    drawn = Masks(names=("Nodule",), pixels=np.stack(masks) if masks else np.zeros((0, *images.shape[1:]), np.uint8), index=index)
    return images, LesionBoxes.of_masks(drawn, "Nodule"), lungs, np.array([study.patient_id for study in studies])


def _grey(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("L"))


def observer(jsrt: Path) -> dict[str, Any]:
    """Nodule against a place without one, folds by image; the untrained filter at the same places."""
    images, lesions, lungs, _ = read(jsrt)
    here = Places(image=lesions.image, x=lesions.x, y=lesions.y)
    rng = np.random.default_rng(0)
    normal = np.setdiff1d(np.arange(len(images)), lesions.image)
    elsewhere = [rng.permutation(np.argwhere(lungs[image]))[0] + 0.5 for image in lesions.image]
    controls = {"mirrored place, same image": here.mirrored(image_size=images.shape[1]),
                "same place, image without nodules": Places(image=rng.permutation(np.resize(normal, len(here.image))), x=here.x, y=here.y),
                "random place in the lungs, same image": Places(image=here.image, x=np.array([at[1] for at in elsewhere]),
                                                                y=np.array([at[0] for at in elsewhere]))}
    fold = rng.integers(FOLDS, size=len(images))
    blobs = BlobFilter()
    maps = blobs.maps(images)
    rows = {}
    for name, control in controls.items():
        scores = [np.zeros(len(places.image)) for places in (here, control)]
        for number in range(FOLDS):
            trained = train_observer(images, here.take(fold[here.image] != number), control.take(fold[control.image] != number),
                                     finding="Nodule", trained_on="real")
            for values, places in zip(scores, (here, control), strict=True):
                tested = fold[places.image] == number
                values[tested] = trained.scores(images, places.take(tested))
        untrained = [maps[places.image, np.floor(places.y).astype(int), np.floor(places.x).astype(int)] for places in (here, control)]
        owners = np.concatenate([here.image, control.image])
        rows[name] = {judge: _area(np.concatenate(values), owners) for judge, values in (("observer", scores), (blobs.name, untrained))}
    begun = time.process_time()
    channel_values(images[:20], Places(image=np.arange(20), x=np.full(20, 99.0), y=np.full(20, 99.0)), config=trained.config)
    return {"nodules": len(here.image), "rows": rows, "observer_ms_an_image": round(50 * (time.process_time() - begun), 1)}


def _area(scores: NDArray[np.float64], owners: NDArray[np.intp]) -> str:
    half = len(scores) // 2
    found = counted_bootstrap(np.repeat([1, 0], half), scores, owners, counted_auroc)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def detector(jsrt: Path, inserted: Path, *, seeds: int, updates: int) -> dict[str, Any]:
    """A detector that was trained on inserted nodules alone against the untrained filter, on all of JSRT."""
    images, lesions, lungs, patients = read(jsrt)
    taught, known, _, _ = read(inserted)
    begun = time.process_time()
    trained = [train_detector(taught, known, finding="Nodule", trained_on="inserted", config=DetectorConfig(updates=updates), seed=seed)
               for seed in range(seeds)]
    seconds = (time.process_time() - begun) / seeds
    runs = {"detector": [one.marks(images, within=lungs) for one in trained]}
    runs |= {judge.name: [judge.marks(images, within=lungs)] for judge in (BlobFilter(), BlobFilter(kind="curvature"))}
    found = {name: [free_response(marks, lesions) for marks in several] for name, several in runs.items()}
    rows: dict[str, Any] = {}
    for name, several in found.items():
        sensitivity, area = sensitivity_interval(several, patients), jafroc_interval(several, patients)
        rows[name] = {"sensitivity": _interval(sensitivity), "jafroc": _interval(area),
                      "image AUROC": _image_area(runs[name], lesions, patients)}
        if name != "detector":
            rows[name]["detector less this"] = _interval(sensitivity_difference(several, found["detector"], patients))
    return {"lesions learned from": len(known.image), "seconds of a training": round(seconds), "seeds": seeds, "updates": updates,
            "rows": rows}


def _interval(found: Any) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _image_area(several: list[Marks], lesions: LesionBoxes, patients: NDArray[np.str_]) -> str:
    scores = np.mean([np.nan_to_num(marks.image_scores(), neginf=-1e3) for marks in several], axis=0)
    shown = np.isin(np.arange(len(scores)), lesions.image).astype(int)
    return _interval(counted_bootstrap(shown, scores, patients, counted_auroc))


def spaces(real: Path, *, seed: int = 0) -> dict[str, Any]:
    """For each failure and space: how many standard errors farther from real images than untouched real images of other patients."""
    studies = [study for study in read_dataset(real).studies if study.view == "PA"]
    owners = np.array([study.patient_id for study in studies])
    people = np.random.default_rng(seed).permutation(np.unique(owners))[: 2 * NUM_IMAGES]
    chosen = [int(np.flatnonzero(owners == person)[0]) for person in people]
    images = np.stack([_grey(real / studies[row].file_name) for row in chosen])
    first, second = images[:NUM_IMAGES], images[NUM_IMAGES:]
    train = ImageSet(pixels=first, studies=tuple(studies[row] for row in chosen[:NUM_IMAGES]), findings=(),
                     labels=np.zeros((NUM_IMAGES, 0), np.float32), digest="")
    table: dict[str, Any] = {}
    for name in SPACES:
        space = load_features(name, train=train)
        begun = time.process_time()
        known, other = space(first), space(second)
        table[space.name] = {"ms_an_image": round(1000 * (time.process_time() - begun) / len(images), 1)}
        base = fid_64(known, other)
        for failure, change in FAILURES.items():
            made = space(change(second, np.random.default_rng(seed)))
            value, low, high = kid_difference(known, other, made)
            table[space.name][failure] = {"kid z": round(3.92 * value / max(high - low, 1e-12), 1),
                                          "fid_64 ratio": round(fid_64(known, made) / base, 2)}
        print(name, table[space.name], flush=True)
    return table


def _blurred(images: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma)).round().astype(np.uint8)


def _through(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Shrunk and enlarged again: the detail is gone, the picture stays."""
    small = [Image.fromarray(one).resize((side, side), Image.Resampling.BOX) for one in images]
    return np.stack([np.asarray(one.resize(images.shape[2:0:-1], Image.Resampling.BICUBIC)) for one in small])


def _wrong_texture(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """What lies below 4 px keeps its power spectrum and loses its phases: the right amount of the wrong detail."""
    grey = images.astype(np.float64)
    coarse = ndimage.gaussian_filter(grey, (0, 2, 2))
    phases = np.angle(np.fft.fft2(rng.normal(size=grey.shape)))
    return (coarse + np.fft.ifft2(np.abs(np.fft.fft2(grey - coarse)) * np.exp(1j * phases)).real).clip(0, 255).round().astype(np.uint8)


def _with_blobs(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A nodule of 11 px and 20 grey levels in every image."""
    y, x = np.mgrid[: images.shape[1], : images.shape[2]]
    at = rng.uniform(0.25, 0.75, size=(len(images), 2)) * images.shape[1]
    bumps = np.stack([20 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 4.0**2)) for row, column in at])
    return (images + bumps).clip(0, 255).round().astype(np.uint8)


FAILURES = {
    "blur, 1 px": lambda images, rng: _blurred(images, 1),
    "blur, 3 px": lambda images, rng: _blurred(images, 3),
    "through 128 px": lambda images, rng: _through(images, 128),
    "through 64 px": lambda images, rng: _through(images, 64),
    "noise, 4 grey levels": lambda images, rng: (images + rng.normal(0, 4, images.shape)).clip(0, 255).round().astype(np.uint8),
    "wrong texture": _wrong_texture,
    "collapse to 10 images": lambda images, rng: images[np.arange(len(images)) % 10],
    "mirrored": lambda images, rng: images[:, :, ::-1].copy(),
    "a nodule in every image": _with_blobs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("observer", "detector", "spaces"))
    for name in ("jsrt", "inserted", "real"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--updates", type=int, default=DetectorConfig().updates)
    parser.add_argument("--out", type=Path, required=True)
    told = parser.parse_args()
    args = {"observer": (told.jsrt,), "detector": (told.jsrt, told.inserted), "spaces": (told.real,)}[told.part]
    if any(path is None for path in args):
        parser.error(f"{told.part} needs more folders, see --help")
    more = {"seeds": told.seeds, "updates": told.updates} if told.part == "detector" else {}
    found = {"observer": observer, "detector": detector, "spaces": spaces}[told.part](*args, **more)
    print(found)
    told.out.mkdir(parents=True, exist_ok=True)
    write_json(told.out / f"{told.part}.json", found)


if __name__ == "__main__":
    main()
