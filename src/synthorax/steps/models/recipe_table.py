"""The table of shipped recipes: counted once and shipped, because building their networks takes seconds. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthorax.files import read_json_object

TABLE = Path(__file__).parents[2] / "recipes" / "table.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeFacts:
    """One recipe of the table."""

    recipe: str
    family: str
    image_size: int | None
    """side in pixels; None where it is that of the trained model that it needs"""
    parameters: int | None
    """as `steps.parameter_count.count_parameters` counts them; None where they are those of the trained model that it needs"""
    needs: tuple[str, ...]
    """what `train` needs beside images: compressor, masks, teacher, generator; or, to make radiographs, a base to be packed with"""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"needs": list(self.needs)}


def recipes() -> list[dict[str, Any]]:
    """Name, family, image size, number of parameters and needs of every shipped recipe, see `RecipeFacts`.

    >>> recipes()[0]["recipe"]
    'aae-64'
    """
    found = read_json_object(TABLE, {"recipes": list}, remedy="install it again: `pip install --force-reinstall synthorax`")
    return list(found["recipes"])
