"""Masks of organs and lesions on the grid of their images: read, checked, put into classes, and stacked for training.

Organs are named in small letters (`lung`), findings begin with a capital (`Nodule`), so that a list of classes says which are which.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthorax.data.image_files import read_image
from synthorax.data.lesions import lesions_of, measure_lesion
from synthorax.data.pixels import MAX_PIXELS, Pixels, content_box
from synthorax.data.vocabulary import NO_FINDING, canonical
from synthorax.errors import InputError
from synthorax.threads import available_cores
from synthorax.types import Lesion, Masks, Stated, Study

UNNAMED = "Lesion"
"""class of lesions that have a mask but no name"""
INSIDE, IN_BOX = 255, 128
"""values of `Masks.pixels`: inside an outline, and inside a box that holds the lesion somewhere"""
MAX_VALUES = 8
"""a mask file with more grey values than this is taken for an image"""
PSEUDO = "pseudo_"
"""start of the columns of masks that a network drew; they count only where there is no other"""

_VALUE = np.arange(256, dtype=np.float32) / 255
_VALUE[IN_BOX] = 0.5


def mask_class(finding: str, *, findings: Sequence[str] = ()) -> str:
    """The class that holds the lesions of a finding: its name with a capital, `UNNAMED` where it has none.

    >>> mask_class("Nodule"), mask_class("ground glass"), mask_class("")
    ('Nodule', 'Ground glass', 'Lesion')
    """
    return _finding_class(finding, tuple(findings))


@functools.cache  # looking for the nearest name takes a millisecond, and a set asks for few names many times
def _finding_class(finding: str, findings: tuple[str, ...]) -> str:
    try:
        finding = canonical(finding, allow=findings)
    except InputError:
        finding = finding or UNNAMED
    return finding[0].upper() + finding[1:]


def is_organ(name: str) -> bool:
    """Whether a mask class is an organ; the others are findings."""
    return name[:1].islower()


def mask_classes(studies: Sequence[Study], findings: Sequence[str]) -> tuple[str, ...]:
    """The classes that have a mask or a box on any image: organs by name, then findings by name.

    `lung_mask`, `lung_masks` and `pseudo_lung_mask` are the organ `lung`; a column named after a known finding, such as `effusion_mask`,
    belongs to that finding. Labels of lesions need not be among `findings`, which lend their spelling.

    >>> mask_classes([Study(file_name="a.png", masks={"lung_mask": ("l.png",), "lesion_mask": ("m.png",)}, lesion_label="Mass")], ["Mass"])
    ('lung', 'Mass')
    """
    names = {name for study in studies for name in _classes_of(study, lesions_of(study), findings)}
    return tuple(sorted(names, key=lambda name: (not is_organ(name), name)))


def _classes_of(study: Study, lesions: Sequence[Lesion], findings: Sequence[str]) -> set[str]:
    marked = {mask_class(lesion.finding, findings=findings) for lesion in lesions if lesion.mask or lesion.box}
    return marked | set(_organs(study))


def _organs(study: Study) -> dict[str, tuple[str, ...]]:
    """Class -> paths of its masks; those that a network drew only where there are no others."""
    human: dict[str, tuple[str, ...]] = {}
    pseudo: dict[str, tuple[str, ...]] = {}
    for column, paths in study.masks.items():
        name = column.removesuffix("s").removesuffix("_mask")
        if name == "lesion":
            continue
        kind = pseudo if name.startswith(PSEUDO) else human
        name = _column_class(name.removeprefix(PSEUDO))
        kind[name] = kind.get(name, ()) + paths
    return pseudo | human


@functools.cache
def _column_class(name: str) -> str:
    try:
        return mask_class(canonical(name))
    except InputError:
        return name[:1].lower() + name[1:]


def read_mask(
    path: str | Path, size: int, *, image_shape: tuple[int, int] | None = None, file: str | Path | None = None, row: int | None = None,
    blocks: int = 1,
) -> NDArray[np.uint8]:
    """A mask file on the grid of its image, [size, size]: 255 inside, 0 outside, at the edges the covered part of the pixel.

    The file is a PNG in which every value but 0 is inside; where its values are 0, 128 and 255, 128 is inside a box only. `image_shape`,
    height and width, is what the mask must have. With `blocks`, it goes through `size * blocks` pixels as images do that are
    prepared at that size. A mask that is not empty keeps at least one pixel. Raises `InputError` naming `file` and `row`.
    """
    path = Path(path)
    values, distinct = _mask_values(path, image_shape, file, row)
    if IN_BOX not in distinct or not distinct <= {0, IN_BOX, INSIDE}:
        return _on_grid(values > 0, size, blocks)
    return np.maximum(_on_grid(values == INSIDE, size, blocks), as_box(_on_grid(values == IN_BOX, size, blocks)))


def mask_pixels(path: str | Path) -> Pixels:
    """A mask file as one grey channel [H, W] with the values that `read_mask` takes it by, so that it can be written anew.

    Raises `InputError` for what cannot be decoded, and for a mask with transparent parts.
    """
    pixels = read_image(path)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode in ("1", "L", "I;16") and "transparency" not in image.info:
                return pixels
            values = _values(image)
    except OSError:  # a mask in another format: refused where it is used, if it has more values than a mask has
        return pixels
    if values is None:
        raise InputError("the mask has transparent parts", file=path, remedy="save it as PNG, black and white")
    return values


def as_box(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same area [S, S] as 128, "the lesion is somewhere in here": pixels at least half inside, or else the most covered one."""
    top = max(1, min(int(mask.max(initial=0)), IN_BOX - 1))
    return np.where(mask >= top, np.uint8(IN_BOX), np.uint8(0))


def black_and_white(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask [S, S] with edges at half of a pixel, as files have them; what is smaller than a pixel keeps its most covered one."""
    least = min(IN_BOX, max(1, int(mask.max(initial=0))))
    return np.where(mask == IN_BOX, np.uint8(IN_BOX), np.where(mask >= least, np.uint8(INSIDE), np.uint8(0)))


def box_mask(box: tuple[float, float, float, float], size: int) -> NDArray[np.uint8]:
    """A box (left, top, width, height in parts of the square image) as [size, size], 128 in pixels whose centre is inside, at least one.

    >>> box_mask((0.5, 0.0, 0.5, 0.5), 4)[:2].tolist()
    [[0, 0, 128, 128], [0, 0, 128, 128]]
    """
    left, top, width, height = box
    (first, last), (upper, lower) = _pixels_between(left, left + width, size), _pixels_between(top, top + height, size)
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[upper:lower, first:last] = IN_BOX
    return mask


def _pixels_between(start: float, end: float, size: int) -> tuple[int, int]:
    first, last = math.ceil(start * size - 0.5), math.ceil(end * size - 0.5)
    if last <= first:
        first = min(size - 1, int((start + end) / 2 * size))
        last = first + 1
    return first, last


def load_masks(
    studies: Sequence[Study], folder: str | Path, *, size: int, classes: Sequence[str], labels: NDArray[np.float32],
    findings: Sequence[str], table: str | Path | None = None, rows: Sequence[int] | None = None, blocks: int = 1,
) -> Masks:
    """Masks of images in `classes`; `labels` [N, K] and `findings` say where a finding is absent, so that nothing is there.

    See `load_lesions`, which also measures the lesions.
    """
    return load_lesions(studies, folder, size=size, classes=classes, labels=labels, findings=findings, table=table, rows=rows,
                        blocks=blocks)[0]


def load_lesions(
    studies: Sequence[Study], folder: str | Path, *, size: int, classes: Sequence[str], labels: NDArray[np.float32],
    findings: Sequence[str], table: str | Path | None = None, rows: Sequence[int] | None = None, blocks: int = 1,
) -> tuple[Masks, list[tuple[Lesion, ...]]]:
    """Masks of images in `classes`, and each image's lesions with what the masks tell of them.

    A class of an image is the union of its masks and boxes. A finding without any is `NOTHING_THERE` where it is stated absent, else
    `NOT_STATED`; so is one whose mask is empty. Places are in parts of the square image; the size of a lesion with an outline is that of
    its outline, whatever the table says. `folder` has the images and masks, `table` and its `rows` are named in errors. Raises
    `InputError`.
    """
    folder, table = Path(folder), Path(table or Path(folder) / "metadata.csv")
    rows = range(2, len(studies) + 2) if rows is None else rows
    classes = tuple(classes)
    work = [_Work(study=study, lesions=lesions_of(study, file=table, row=row), folder=folder, size=size, blocks=blocks, classes=classes,
                  findings=tuple(findings), file=table, row=row) for study, row in zip(studies, rows, strict=True)]
    most = sum(len(_classes_of(image.study, image.lesions, findings).intersection(classes)) for image in work)
    pixels = np.empty((most, size, size), dtype=np.uint8)
    index = np.full((len(studies), len(classes)), Masks.NOT_STATED, dtype=np.int32)
    for column, name in enumerate(classes):
        if not is_organ(name):
            index[_absent(studies, labels, findings, name), column] = Masks.NOTHING_THERE
    used, lesions = 0, []
    for number, image in enumerate(_read_marks(work)):
        for name, mask in image.masks.items():
            if mask.any():
                pixels[used] = mask
                index[number, classes.index(name)] = used
                used += 1
            elif is_organ(name):
                index[number, classes.index(name)] = Masks.NOTHING_THERE
        lesions.append(image.lesions)
    return Masks(names=classes, pixels=pixels[:used], index=index), lesions


def _absent(studies: Sequence[Study], labels: NDArray[np.float32], findings: Sequence[str], name: str) -> NDArray[np.bool_]:
    """Images on which the finding of this class is stated absent, [N]; a name that is no finding is absent on normal images."""
    for column, finding in enumerate(findings):
        if mask_class(finding, findings=findings) == name:
            return np.asarray(labels[:, column] == 0)
    return np.array([study.labels.get(NO_FINDING) is Stated.PRESENT for study in studies], dtype=np.bool_)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """One image to read, and where errors are to say that it stands."""

    study: Study
    lesions: tuple[Lesion, ...]
    folder: Path
    size: int
    blocks: int
    classes: tuple[str, ...]
    findings: tuple[str, ...]
    file: Path
    row: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Marked:
    """What is marked on one image: class -> [S, S], and its lesions."""

    masks: Mapping[str, NDArray[np.uint8]]
    lesions: tuple[Lesion, ...]


def _read_marks(work: Sequence[_Work]) -> Iterator[_Marked]:
    """Images read on several threads, in order, a few at a time so that memory stays small."""
    cores = available_cores()
    # Pillow warns of pictures that unpack to gigabytes; the filters belong to the process, so they are set once for all threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(cores) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for start in range(0, len(work), 16 * cores):
            yield from pool.map(_mark, work[start:start + 16 * cores])


def _mark(work: _Work) -> _Marked:
    study, lesions = work.study, work.lesions
    organs = {name: paths for name, paths in _organs(study).items() if name in work.classes}
    if not organs and not lesions:
        return _Marked(masks={}, lesions=())
    shape = image_shape(work.folder / study.file_name, file=work.file, row=work.row)
    masks: dict[str, NDArray[np.uint8]] = {}

    def add(name: str, mask: NDArray[np.uint8]) -> None:
        masks[name] = np.maximum(masks[name], mask) if name in masks else mask

    def read(path: str) -> NDArray[np.uint8]:
        return read_mask(work.folder / path, work.size, image_shape=shape, file=work.file, row=work.row, blocks=work.blocks)

    for name, paths in organs.items():
        for path in paths:
            add(name, read(path))
    found = []
    for lesion, kind in zip(lesions, _kinds(study, len(lesions), work), strict=True):
        lesion = in_square(lesion, shape, work.size * work.blocks)
        mask = None
        if lesion.mask:
            mask = read(lesion.mask)
            mask = as_box(mask) if kind == "box" and mask.any() else mask
        elif lesion.box is not None:
            mask = box_mask(lesion.box, work.size)
        if mask is not None and (name := mask_class(lesion.finding, findings=work.findings)) in work.classes:
            add(name, mask)
        outlined = mask is not None and bool((mask > IN_BOX).any())
        found.append(measure_lesion(replace(lesion, size=math.nan) if outlined else lesion, mask if lesion.mask else None))
    return _Marked(masks=masks, lesions=tuple(found))


def _kinds(study: Study, count: int, work: _Work) -> list[str]:
    """`box` or the like for each lesion; one word stands for all of them."""
    kinds = [kind.strip().lower() for kind in study.extra.get("lesion_kind", "").split("|")]
    if len(kinds) not in (1, count):
        raise InputError(f"lesion_kind has {len(kinds)} items for {count} lesions", file=work.file, row=work.row,
                         remedy="write one for all, or one for each lesion")
    return kinds if len(kinds) == count else kinds * count


def image_shape(path: str | Path, *, file: str | Path | None = None, row: int | None = None) -> tuple[int, int]:
    """Height and width of an image, from the header of a PNG or JPEG; a DICOM image is decoded."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise InputError(f"'{Path(path).name}' is missing, so its masks cannot be compared with it", file=file or path, row=row,
                         remedy="put the dataset folder back where it was, or prepare it again") from None
    except OSError:
        shape = read_image(path).shape
        return shape[0], shape[1]


def in_square(lesion: Lesion, shape: tuple[int, int], size: int) -> Lesion:
    """A lesion in parts of an image of `shape` as one in parts of the square [size, size] that `pixels.letterbox` makes of it.

    >>> in_square(Lesion(finding="Mass", x=0.0, y=0.5), (200, 100), 64).x
    0.25
    """
    top, left, height, width = (length / size for length in content_box(shape, size))
    box = None
    if lesion.box is not None:
        x, y, across, down = lesion.box
        box = (left + x * width, top + y * height, across * width, down * height)
    return replace(lesion, x=left + lesion.x * width, y=top + lesion.y * height, size=lesion.size * math.sqrt(width * height), box=box)


def mask_stack(masks: Masks, rows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
    """The masks of images, [n, M, S, S] in [0, 1]: 1 inside, 0.5 in a box, 0 where nothing is; NaN in channels that are not stated."""
    index = masks.index[np.asarray(rows, dtype=np.intp)]
    stack = np.full((*index.shape, *masks.pixels.shape[1:]), np.nan, dtype=np.float32)
    stack[index == Masks.NOTHING_THERE] = 0
    stack[index >= 0] = _VALUE[masks.pixels[index[index >= 0]]]
    return stack


def lesion_union(masks: Masks, rows: Sequence[int] | NDArray[np.integer], findings: Sequence[str] = ()) -> NDArray[np.float32]:
    """Where any lesion is, [n, 1, S, S] in [0, 1]: the largest value over all classes that are no organs; 0 where none is known.

    `findings` are further names that count as lesions whatever their spelling.
    """
    index = masks.index[np.asarray(rows, dtype=np.intp)]
    union = np.zeros((len(index), 1, *masks.pixels.shape[1:]), dtype=np.float32)
    for column, name in enumerate(masks.names):
        if is_organ(name) and name not in findings:
            continue
        images = np.nonzero(index[:, column] >= 0)[0]
        union[images, 0] = np.maximum(union[images, 0], _VALUE[masks.pixels[index[images, column]]])
    return union


def _mask_values(
    path: Path, image_shape: tuple[int, int] | None, file: str | Path | None, row: int | None
) -> tuple[Pixels, set[int]]:
    """The grey values of a mask file [H, W], checked, and which there are."""
    name = f"mask '{path.name}'" if file is not None else "the mask"

    def refused(problem: str, remedy: str) -> InputError:
        return InputError(f"{name} {problem}", file=file or path, row=row, remedy=remedy)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as image:
                if image_shape is not None and (image.height, image.width) != image_shape:
                    raise refused(f"has {image.width} x {image.height} pixels and its image {image_shape[1]} x {image_shape[0]}",
                                  "save it with the size and the crop of its image")
                if image.width * image.height > MAX_PIXELS:
                    raise refused(f"has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read", "save it smaller")
                values = _values(image)
    except InputError:
        raise
    except FileNotFoundError:
        raise refused("is missing", "copy it into the dataset folder, or empty its cell") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others on damaged files
        raise refused(f"is no PNG that can be read ({type(error).__name__})", "save it as PNG, black and white") from error
    if values is None:
        raise refused("has transparent parts", "save it as PNG, black and white")
    distinct = set(np.nonzero(np.bincount(values.ravel()))[0].tolist())
    if len(distinct) > MAX_VALUES:
        raise refused(f"has {len(distinct)} grey values, as an image has and no mask", "save it as PNG, black and white")
    return values, distinct


def _values(image: Image.Image) -> Pixels | None:
    """One value a pixel, for colours the brightest channel; None where some of the picture is transparent."""
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)
    if "A" in image.mode or "transparency" in image.info:
        if np.asarray(image.convert("RGBA"))[..., 3].min(initial=255) < 255:
            return None
        image = image.convert("RGBA").convert("RGB")  # straight to RGB, Pillow warns of some palettes
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"), dtype=np.uint8)
    brightest: Pixels = np.array(image.convert("RGB"), dtype=np.uint8).max(axis=2)
    return brightest


def _on_grid(inside: NDArray[np.bool_], size: int, blocks: int) -> NDArray[np.uint8]:
    """Covered part of each pixel as 0 to 255, [size, size]; 128 is left to boxes."""
    top, left, height, width = content_box((inside.shape[0], inside.shape[1]), size * blocks)
    content = np.where(inside, np.uint8(INSIDE), np.uint8(0))
    if content.shape != (height, width):
        content = np.asarray(Image.fromarray(content).resize((width, height), Image.Resampling.BOX))
    boxed = np.zeros((size * blocks, size * blocks), dtype=np.uint8)
    boxed[top:top + height, left:left + width] = content
    if blocks > 1:
        boxed = np.array(Image.fromarray(boxed).reduce(blocks))
    if not boxed.any() and inside.any():  # smaller than can be seen: its centre stays
        row, column = (float(axis.mean() + 0.5) for axis in np.nonzero(inside))
        boxed[int((top + row * height / inside.shape[0]) / blocks), int((left + column * width / inside.shape[1]) / blocks)] = 1
    boxed[boxed == IN_BOX] = IN_BOX - 1
    return boxed
