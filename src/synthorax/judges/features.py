"""Feature spaces: what turns images into the vectors that fidelity and diversity are measured on."""

from __future__ import annotations

import hashlib
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import UsageError, nearest
from synthorax.judges.chest import fit_chest_features
from synthorax.judges.foreign_features import from_file, torchxrayvision
from synthorax.progress import Progress, quiet
from synthorax.registry import lookup
from synthorax.types import ImageSet


class FeatureSpace(Protocol):
    """A frozen network that describes images; a score names it, and a report records its digest.

    Input contract: grey images [N, S, S], uint8 or uint16, full range of the type, bone bright; any S, which the space
    resizes by itself. Same image, same features, whatever the batch (up to float32 rounding). Compare two sets through
    one space and at one image size only: a 64 px image is blurred to any network, and blur is what FID sees first.
    """

    @property
    def name(self) -> str:
        """Short name that scores carry."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""

    @property
    def num_features(self) -> int:
        """F, the length of an image's vector."""

    def __call__(self, images: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
        """Images [N, S, S] to features [N, F]."""


@runtime_checkable
class LooksAtOneSize(Protocol):
    """A feature space that resizes every image to one size, whatever its own."""

    @property
    def input_px(self) -> int:
        """Pixels a side at which it looks; 0 where the space inside it has no such size."""


FEATURES = {
    "efficientnet-lite0": "synthorax.judges.efficientnet_lite:EfficientNetLite0Features",
    "scattering": "synthorax.judges.scattering:ScatteringFeatures",
    "radiomics": "synthorax.judges.radiomics:RadiomicsFeatures",
}
SIZED = ("efficientnet-lite0", "scattering")
"""spaces that can look at another size than 128 px: `NAME:224`, and `NAME:own` for the size of the images"""
OWN, USUAL_PX, LARGEST_PX, SIZE_STEP = "own", 128, 256, 32
"""`own` is at most 256 px, and rounded to a multiple of 32 px"""
CHEST = "chest"
"""name of the space that is trained on the real training images before it is used; see `judges.chest`"""
XRAYVISION = "torchxrayvision"
IMAGES_AT_A_TIME = 512
"""images given to a feature space at once: a multiple of the batches of every one, so the numbers are those of one call"""
FILE_ENDINGS = (".pt", ".ts", ".torchscript", ".onnx")


def load_features(name: str, *, train: ImageSet | None = None, seed: int = 0) -> FeatureSpace:
    """The feature space called `name`; an unknown name is an error that lists the choices.

    `efficientnet-lite0` and `scattering` look at 128 px; `efficientnet-lite0:224` looks at 224 px, and `efficientnet-lite0:own` at the
    images' own size, that of `train`, up to 256 px. Beside the names in `FEATURES`: `chest` learns from the real images `train`,
    `torchxrayvision` (or `torchxrayvision:WEIGHTS`) is somebody else's, and a path that ends in `.pt` or `.onnx` is a file.

    >>> load_features("efficientnet-lite0").num_features
    1280
    """
    if name == CHEST:
        if train is None:
            raise UsageError("the feature space 'chest' learns from real training images, and there are none here")
        return fit_chest_features(train, seed=seed)
    if name.lower().endswith(FILE_ENDINGS):
        return from_file(name)
    if name.partition(":")[0] == XRAYVISION:
        return torchxrayvision(name.partition(":")[2] or "densenet121-res224-all")
    base, _, size = name.partition(":")
    if base in SIZED and size:
        made = lookup(FEATURES, base, kind="feature space")(input_px=_size(size, name=name, train=train))
        return Standardised(made, train) if base == "scattering" and train is not None else cast(FeatureSpace, made)
    if name not in FEATURES:
        choices = nearest(name, (*FEATURES, CHEST, XRAYVISION))
        raise UsageError(f"unknown feature space '{name}'; {choices}, or give the path of a .pt or .onnx file")
    space = cast(FeatureSpace, lookup(FEATURES, name, kind="feature space")())
    return Standardised(space, train) if name in ("radiomics", "scattering") and train is not None else space


def usual_features(image_size: int, *, quick: bool = False) -> tuple[str, ...]:
    """Names of the spaces that a report uses unless told: 128 px, where reports of all image sizes compare, and the images' own size.

    Images of up to 128 px have one, and so does a quick report: 256 px take four times as long.

    >>> usual_features(64), usual_features(256)
    (('efficientnet-lite0',), ('efficientnet-lite0', 'efficientnet-lite0:own'))
    """
    return ("efficientnet-lite0",) if quick or image_size <= USUAL_PX else ("efficientnet-lite0", f"efficientnet-lite0:{OWN}")


def looks_at(space: FeatureSpace) -> dict[str, int]:
    """For records of judges: the size in pixels at which a space looks at images, where it says so."""
    return {"input_px": space.input_px} if isinstance(space, LooksAtOneSize) and space.input_px else {}


def _size(told: str, *, name: str, train: ImageSet | None) -> int:
    if told == OWN:
        if train is None:
            raise UsageError(f"the feature space '{name}' looks at the size of the real training images, and there are none here; "
                             "write a number of pixels")
        return int(max(SIZE_STEP, min(LARGEST_PX, train.pixels.shape[1]) // SIZE_STEP * SIZE_STEP))
    if not told.isdecimal() or not SIZE_STEP <= int(told) <= 1024:
        raise UsageError(f"the feature space '{name}' looks at no size; write {name.partition(':')[0]}:224 or {name.partition(':')[0]}:own")
    return int(told)


def features_of(space: FeatureSpace, images: NDArray[np.uint8] | NDArray[np.uint16], *, progress: Progress = quiet) -> NDArray[np.float32]:
    """Features [N, F] of images [N, S, S], taken a few hundred at a time; `progress` is called after each of these."""
    parts = []
    for start in range(0, max(1, len(images)), IMAGES_AT_A_TIME):
        parts.append(space(images[start : start + IMAGES_AT_A_TIME]))
        done = min(start + IMAGES_AT_A_TIME, len(images))
        progress(done / max(1, len(images)), f"features of {done} of {len(images)} images, {space.name}")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Standardised:
    """A space whose numbers have units of their own, each divided by its spread over the real training images, less their mean."""

    def __init__(self, space: FeatureSpace, train: ImageSet) -> None:
        """Mean and spread are learned once, from `train`; the digest covers them."""
        known = space(train.pixels).astype(np.float64)
        self._space, self._mean, self._scale = space, known.mean(axis=0), np.maximum(known.std(axis=0), 1e-6)
        self.name, self.num_features = f"{space.name}-standardised", space.num_features
        self.input_px = looks_at(space).get("input_px", 0)
        self.digest = hashlib.sha256(space.digest.encode() + self._mean.tobytes() + self._scale.tobytes()).hexdigest()

    def __call__(self, images: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.float32]:
        """Features [N, F] of images [N, S, S]."""
        return np.asarray((self._space(images) - self._mean) / self._scale, dtype=np.float32)
