"""Models that ship with the package: their weights and cards lie in this folder, and two tables name them.

`shipped.toml` names generators, `judges.toml` networks that look at images and make none.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from synthorax.config import read_record
from synthorax.errors import InputError
from synthorax.files import write_atomic
from synthorax.run import FORMAT, ModelFile

FOLDER = Path(__file__).parent
TABLE_NAME = "shipped.toml"
JUDGES_NAME = "judges.toml"
HEADER = "# Models that ship with Synthorax: name, weights, their SHA-256, format version, card. bench/ship.py writes it.\n"
JUDGES_HEADER = "# Judges that ship with Synthorax: name, weights, their SHA-256, format version, card. bench/release writes it.\n"
REINSTALL = "install it again: `pip install --force-reinstall synthorax`, or restore the file in a checkout"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipped:
    """One model of the table."""

    name: str
    file: str
    """its weights, in the folder of the table"""
    sha256: str
    """of that file"""
    format: int
    """version of the model format that it was written in, as in `run.FORMAT`"""
    card: str
    """what it was trained on and how good it is, in the same folder"""
    folder: Path

    @property
    def weights(self) -> Path:
        """Where its weights lie, unchecked."""
        return self.folder / self.file


def shipped(folder: Path | None = None) -> dict[str, Shipped]:
    """The table of a folder, by default the one that ships; a file that nobody wrote this way is an InputError."""
    return _read_table(folder or FOLDER, TABLE_NAME)


def judges(folder: Path | None = None) -> dict[str, Shipped]:
    """The table of judges of a folder, by default of the one that ships, as `shipped`."""
    return _read_table(folder or FOLDER, JUDGES_NAME)


def judge_weights(name: str, folder: Path | None = None) -> Path:
    """The file of a judge that ships, whole and unchanged. InputError where it is missing or altered."""
    judge = judges(folder)[name]
    _read_weights(judge)
    return judge.weights


def _read_table(folder: Path, name: str) -> dict[str, Shipped]:
    path = folder / name
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: read_record(Shipped, {"name": name, "folder": folder, **entry}, what=name, where=path, remedy=REINSTALL)
                for name, entry in table.items()}
    except FileNotFoundError:
        raise InputError("is missing from this installation of synthorax", file=path, remedy=REINSTALL) from None
    except (ValueError, TypeError) as error:
        raise InputError(f"is no table of shipped models ({error})", file=path, remedy=REINSTALL) from error


def read(name: str) -> ModelFile:
    """The file of a shipped model, whole and unchanged. InputError where it is missing, altered, or too new to be read."""
    model = shipped()[name]
    if model.format > FORMAT:
        raise InputError(f"'{name}' has model format {model.format}, and this version of synthorax reads up to {FORMAT}",
                         file=model.weights, remedy="update synthorax")
    content = _read_weights(model)
    return ModelFile(model.weights, content, digest=model.sha256)


def _read_weights(model: Shipped) -> bytes:
    """The bytes of a file of the table. InputError where it is missing or altered."""
    name = model.name
    if not model.weights.is_file():
        raise InputError(f"the weights of '{name}' are missing from this installation of synthorax", file=model.weights, remedy=REINSTALL)
    content = model.weights.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != model.sha256:
        raise InputError(f"the weights of '{name}' are cut off or altered: their SHA-256 is not that of the table", file=model.weights,
                         remedy=REINSTALL)
    return content


def enter(model: Shipped, *, judge: bool = False) -> None:
    """Write a model's line into the table of its folder, or into that of the judges, in place of an earlier one of the same name."""
    path = model.folder / (JUDGES_NAME if judge else TABLE_NAME)
    table = {name: _line(entry) for name, entry in (_read_table(model.folder, path.name) if path.exists() else {}).items()}
    table[model.name] = _line(model)
    write_atomic(path, (JUDGES_HEADER if judge else HEADER) + tomli_w.dumps(dict(sorted(table.items()))))


def _line(model: Shipped) -> dict[str, str | int]:
    return {"file": model.file, "sha256": model.sha256, "format": model.format, "card": model.card}
