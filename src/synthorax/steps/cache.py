"""The cache: dataset folders and prepared ones that a script has named no place for."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from synthorax.folders import file_stamp


def cache() -> Path:
    """Where the cache lies: SYNTHORAX_CACHE, else in the home folder."""
    return Path(os.environ.get("SYNTHORAX_CACHE") or Path.home() / ".cache" / "synthorax")


def cached_folder(kind: str, source: Path, *parts: str) -> Path:
    """A folder in the cache that belongs to these arguments and to the source as it is now."""
    files = sorted((str(file.relative_to(source)), file.stat().st_size, file.stat().st_mtime_ns)
                   for file in source.rglob("*") if file.is_file()) if source.is_dir() else []
    key = json.dumps([str(source.resolve()), *parts, files])
    return cache() / kind / hashlib.sha256(key.encode()).hexdigest()[:24]


def content_of(table: str | Path | None) -> tuple[str, ...]:
    """A part of the key that changes with what is in a table, not with its name."""
    return () if table is None else (file_stamp(Path(table)),)
