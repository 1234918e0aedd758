"""What a docstring points to exists: a name such as `steps.models.pack.pack_cascade` leads to a module and to something in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "synthorax"
ROOMS = {path.name for path in PACKAGE.rglob("*") if path.is_dir() and (path / "__init__.py").exists()}
FILES = (".csv", ".html", ".json", ".jsonl", ".toml")
REFERENCE = re.compile(r"(?<!`)`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)`(?!`)")


def docstrings(path: Path) -> Iterator[str]:
    """Every docstring of a module, those of constants and fields too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def exists(reference: str) -> bool:
    """Whether some room or module leads to the name; the package and outer rooms may be left out of it."""
    first, *rest = reference.split(".")
    for place in (path for path in PACKAGE.rglob("*") if path.stem == first and (path.is_dir() or path.suffix == ".py")):
        for number, name in enumerate((*rest, "")):
            if place.suffix == ".py":
                if not name or re.search(rf"\b{name}\b", place.read_text(encoding="utf-8")):
                    return True
                break
            if not name:
                return True
            place = place / name if (place / name).is_dir() else place / f"{name}.py"
            if not place.exists():
                break
            if number == len(rest) - 1:
                return True
    return False


def test_docstrings_lead_to_what_exists() -> None:
    found = [(path.relative_to(PACKAGE).as_posix(), reference) for path in sorted(PACKAGE.rglob("*.py")) for text in docstrings(path)
             for reference in REFERENCE.findall(text) if reference.split(".")[0] in ROOMS and not reference.endswith(FILES)]
    assert len(found) > 20, "the pattern finds references"
    assert [(file, reference) for file, reference in found if not exists(reference)] == []


def test_a_reference_to_nothing_is_noticed() -> None:
    assert exists("steps.models.pack.pack_cascade") and exists("judges.appearance") and exists("judges")
    assert not exists("steps.pack.pack_cascade") and not exists("judges.look") and not exists("steps.models.pack.pack_everything")
