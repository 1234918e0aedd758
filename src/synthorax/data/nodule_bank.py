"""Reads banks of lesions cut from CT: Hounsfield units with a mask each, as flat arrays in one npz file or as a folder of volumes."""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError

FLAT = ("hounsfield", "mask", "shapes", "scan")
"""arrays of a bank in one file: units and masks of all lesions end to end, the shape [3] of each, and the scan that each was cut from"""
_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
_LAYOUTS = "give one npz file with hounsfield, mask, shapes and scan, or a folder of NAME.npz or NAME.nii.gz with NAME_mask.nii.gz"


@dataclass(frozen=True, kw_only=True, slots=True)
class CtLesion:
    """One lesion with some of its surroundings, cut from a CT."""

    hounsfield: NDArray[np.float32]
    """[D, H, W]"""
    mask: NDArray[np.bool_]
    """[D, H, W]: voxels of the lesion"""
    spacing_mm: tuple[float, float, float]
    """sides of a voxel"""
    scan: str
    """of one patient; lesions of a scan are never split"""
    name: str
    """where it stands in the bank, for messages"""


def read_bank(path: Path) -> Iterator[CtLesion]:
    """The lesions of a bank, one by one.

    One npz file holds `hounsfield` [V] and `mask` [ceil(V / 8)], packed as `numpy.packbits` does (or [V] of 0 and 1), the voxels of all
    lesions end to end, `shapes` [N, 3] and `scan` [N]; voxels are 1 mm, or `spacing_mm` [3]. A folder holds one volume a lesion: npz with
    `hounsfield`, `mask` and `spacing_mm`, and perhaps `scan`; or NIfTI, its mask beside it. Raises InputError where a mask is missing,
    shapes do not fit, or values are not finite.
    """
    if path.is_dir():
        yield from _folder(path)
    elif path.suffix == ".npz":
        yield from _flat(path)
    else:
        raise InputError("is no bank of lesions" if path.exists() else "no such file or folder", file=path, remedy=_LAYOUTS)


def _flat(path: Path) -> Iterator[CtLesion]:
    arrays = _npz(path)
    if missing := [name for name in FLAT if name not in arrays]:
        raise InputError(f"has no array {', '.join(missing)}", file=path, remedy=_LAYOUTS)
    units, shapes, scans = arrays["hounsfield"].reshape(-1), arrays["shapes"], arrays["scan"]
    if shapes.ndim != 2 or shapes.shape[1] != 3 or not np.issubdtype(shapes.dtype, np.integer) or (shapes < 1).any():
        raise InputError(f"`shapes` must be whole numbers above 0, [N, 3], not {shapes.dtype} {shapes.shape}", file=path)
    sizes = shapes.astype(np.int64).prod(1)
    total, mask = int(sizes.sum()), arrays["mask"].reshape(-1)
    if len(mask) == (total + 7) // 8 and mask.dtype == np.uint8 and len(mask) != total:
        mask = np.unpackbits(mask)[:total]
    if len(units) != total or len(mask) != total or len(scans) != len(shapes):
        raise InputError(f"`shapes` of {len(shapes)} lesions ask for {total} voxels, and there are {len(units)} of `hounsfield`, "
                         f"{len(mask)} of `mask` and {len(scans)} of `scan`", file=path)
    spacing = _spacing(arrays.get("spacing_mm", np.ones(3)), file=path)
    ends = np.cumsum(sizes)
    for number, (shape, end, size, scan) in enumerate(zip(shapes, ends, sizes, scans, strict=True)):
        yield _lesion(units[end - size:end].reshape(shape), mask[end - size:end].reshape(shape), spacing, scan=str(scan),
                      name=f"lesion {number}", file=path)


def _folder(path: Path) -> Iterator[CtLesion]:
    files = sorted(file for file in path.iterdir() if file.name.endswith((".npz", ".nii", ".nii.gz")) and "_mask." not in file.name)
    if not files:
        raise InputError("holds no volumes", file=path, remedy=_LAYOUTS)
    for file in files:
        if file.suffix == ".npz":
            arrays = _npz(file)
            if missing := [name for name in ("hounsfield", "mask", "spacing_mm") if name not in arrays]:
                raise InputError(f"has no array {', '.join(missing)}", file=file, remedy=_LAYOUTS)
            units, mask, spacing = arrays["hounsfield"], arrays["mask"], _spacing(arrays["spacing_mm"], file=file)
            scan = str(arrays["scan"]) if "scan" in arrays else file.stem
        else:
            stem, dot, ending = file.name.partition(".nii")
            beside = file.with_name(f"{stem}_mask{dot}{ending}")
            if not beside.is_file():
                raise InputError("has no mask beside it", file=file, remedy=f"add {beside.name}")
            (units, spacing), (mask, _), scan = _nifti(file), _nifti(beside), stem
        if units.ndim != 3 or units.shape != mask.shape:
            raise InputError(f"the volume has shape {units.shape} and its mask {mask.shape}; both must be one [D, H, W]", file=file)
        yield _lesion(units, mask, spacing, scan=scan, name=file.name, file=file)


def _lesion(units: NDArray[Any], mask: NDArray[Any], spacing: tuple[float, float, float], *, scan: str, name: str, file: Path) -> CtLesion:
    if not np.isfinite(units).all():
        raise InputError(f"{name}: Hounsfield units that are not finite numbers", file=file, remedy="remove the lesion")
    return CtLesion(hounsfield=units.astype(np.float32), mask=mask.astype(bool), spacing_mm=spacing, scan=scan, name=name)


def _spacing(value: NDArray[Any], *, file: Path) -> tuple[float, float, float]:
    sides = np.broadcast_to(value, 3).astype(float).tolist() if np.shape(value) in ((), (1,), (3,)) else []
    if len(sides) != 3 or not all(math.isfinite(side) and side > 0 for side in sides):
        raise InputError("`spacing_mm` must be one or three numbers above 0", file=file)
    return sides[0], sides[1], sides[2]


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"is no npz file that can be read ({error})", file=path) from error


def _nifti(path: Path) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Values and spacing of a NIfTI-1 volume in one file, axes reversed, so that the first is the slowest in the file."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        order = "<" if struct.unpack_from("<i", content)[0] == 348 else ">"
        dims = struct.unpack_from(f"{order}8h", content, 40)
        kind, sides = struct.unpack_from(f"{order}h", content, 70)[0], struct.unpack_from(f"{order}8f", content, 76)
        start, slope, intercept = struct.unpack_from(f"{order}3f", content, 108)
        if content[344:347] != b"n+1" or dims[0] < 3 or any(side != 1 for side in dims[4:dims[0] + 1]) or min(dims[1:4]) < 1:
            raise ValueError("not one volume of NIfTI-1 in one file")
        shape = dims[3], dims[2], dims[1]
        values = np.frombuffer(content, dtype=order + _NIFTI_TYPES[kind], count=math.prod(shape), offset=int(start)).reshape(shape)
    except (OSError, EOFError, struct.error, ValueError, LookupError) as error:
        raise InputError(f"is no NIfTI volume that can be read ({error})", file=path) from error
    scaled = values.astype(np.float64) * slope + intercept if slope and math.isfinite(slope) else values
    return scaled, _spacing(np.abs(np.array(sides[3:0:-1])), file=path)
