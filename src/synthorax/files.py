"""Files that are whole or absent: written beside their place, flushed to disk, renamed, with a digest where it matters."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthorax.errors import InputError
from synthorax.former_names import with_present_facts

MAX_NAME_BYTES = 120
"""of a part of a path; most file systems allow 255, and numbers, digests and endings come behind"""
_RESERVED = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10))})
"""names that Windows keeps for itself"""
_SPLIT_WORD = re.compile(r"(?<![^-._ 0-9])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?![^-._ 0-9])")
"""what the imagefolder of datasets 5.2.0 takes for the name of a split: findings/datasets-imagefolder-takes-names-for-splits.sh"""


def write_atomic(path: Path, content: bytes | str, *, mode: int | None = None) -> None:
    """Write a file so that a reader or a crash never sees half of it; missing folders are made. OSError names `path`.

    `mode` is who may read it, such as 0o600 for its owner alone, from the first byte on; by default as the system decides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=None if mode is None else lambda name, flags: os.open(name, flags, mode)) as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


Kinds = Mapping[str, type | tuple[type, ...]]
"""keys that an object must have, and the types of their values"""


def read_json_object(path: Path, keys: Kinds | None = None, *, remedy: str) -> dict[str, Any]:
    """A JSON object that Synthorax wrote; InputError with `remedy` where it cannot be read, is damaged, or lacks one of `keys`."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError("is missing", file=path, remedy=remedy) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy=remedy) from error
    return json_object(content, keys, where=path, remedy=remedy)


def json_object(content: bytes | str, keys: Kinds | None = None, *, where: Path | str, remedy: str) -> dict[str, Any]:
    """`read_json_object` for text that lies in another file, `where`."""
    try:
        found = with_present_facts(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is damaged: not JSON ({str(error)[:100]})", file=where, remedy=remedy) from None
    if not isinstance(found, dict):
        raise InputError("is damaged: not a JSON object", file=where, remedy=remedy)
    for key, kind in (keys or {}).items():
        check_kind(found, key, kind, where=where, remedy=remedy)
    return found


def safetensors_metadata(content: bytes, *, file: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file: eight bytes with the length of a JSON object, then that object. Raises InputError."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return dict(header.get("__metadata__") or {})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"is not a safetensors file ({str(error)[:100]})", file=file) from None


def json_line(line: str) -> dict[str, Any]:
    """The object on one line of a log; empty for a line that a kill or a damaged disk has left, by which nothing is lost but itself."""
    try:
        return json_object(line, where="", remedy="")
    except InputError:
        return {}


def check_kind(record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], *, where: Path | str, remedy: str) -> None:
    """InputError where `record` has no `key`, or one of another type; true and false are no numbers, whole numbers are numbers."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if key not in record:
        raise InputError(f"is damaged: it does not state '{key}'", file=where, remedy=remedy)
    value = record[key]
    fits = type(value) in kinds or (float in kinds and type(value) is int)
    if not fits:
        raise InputError(f"is damaged: '{key}' is {json.dumps(value, default=str)[:60]}", file=where, remedy=remedy)


def write_with_digest(path: Path, content: bytes) -> None:
    """Write `path` and, before it, `path.sha256`: the rename of `path` is the moment at which both count."""
    write_atomic(_digest_path(path), hashlib.sha256(content).hexdigest() + "\n")
    write_atomic(path, content)


def read_with_digest(path: Path) -> bytes:
    """Read a file that `write_with_digest` wrote; InputError if it is missing or was changed since."""
    return read_verified(path)[0]


def read_verified(path: Path) -> tuple[bytes, str]:
    """`read_with_digest`, with the SHA-256 that was found; the file is read and hashed once."""
    try:
        content, expected = path.read_bytes(), _digest_path(path).read_bytes().strip()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=error.filename or path) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest.encode() != expected:
        raise InputError("does not match the SHA-256 beside it", file=path, remedy="restore it or delete both files")
    return content, digest


def reserve(path: Path, num_bytes: int) -> None:
    """Take the space of a file on its disk before it is written through a memory map, where a full disk would kill the process.

    Raises OSError where there is too little space.
    """
    with path.open("r+b") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, num_bytes)
        else:  # macOS and Windows
            handle.seek(0, os.SEEK_END)
            while (missing := num_bytes - handle.tell()) > 0:
                handle.write(bytes(min(missing, 1 << 20)))


def readable_name(name: str) -> str:
    """A name as one part of a path, without separators, spaces, leading dots and signs that shells or spreadsheets read in their own way.

    Several names may become the same one; `safe_name` keeps them apart. Words such as `test` lose their edge, because Hugging Face datasets
    would take them for splits and leave out all other images.

    >>> readable_name("deep/../er/image 1.png"), readable_name("test/image-1.png"), readable_name("..")
    ('deep_er_image_1.png', 'testset_image-1.png', 'unnamed')
    """
    parts = (re.sub(r"[^\w.+-]+", "_", part) for part in re.split(r"[/\\]", name) if part.strip("."))
    joined = _SPLIT_WORD.sub(r"\1set", "_".join(parts))
    return joined.encode()[:MAX_NAME_BYTES].decode(errors="ignore").lstrip(".-+").rstrip(".") or "unnamed"


def safe_name(name: str) -> str:
    """A name of a finding, organ, set or the like as one part of a path; where it has to be changed a digest keeps it apart from others.

    >>> safe_name("Mass"), safe_name("Mass/Nodule")
    ('Mass', 'Mass_Nodule-1a8f2e25')
    """
    plain = readable_name(name)
    if plain.partition(".")[0].upper() in _RESERVED:
        plain = f"_{plain}"
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Delete what writes that were killed have left in `folder`; only for its one writer, outside of any write."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened for flushing
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
