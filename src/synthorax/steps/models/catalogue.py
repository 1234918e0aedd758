"""What models there are: those that ship, and runs in a folder, each with what it makes and the terms of its data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthorax import zoo
from synthorax.errors import InputError, SynthoraxError
from synthorax.run import WEIGHTS_NAME, ModelFile
from synthorax.steps.models.card import licences_of, read_card

CONFIG_NAME = "config.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """One model of a list; what could not be read is empty, and `state` says why."""

    model: str
    """name or path, as `generate` takes it"""
    state: str
    """shipped, finished, not finished, or what is wrong with it"""
    family: str = ""
    image_size: int | None = None
    findings: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    """terms of the data that it was trained on"""
    outlines: tuple[str, ...] = ()
    """what a judge outlines"""
    card: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; empty parts are left out."""
        parts = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in parts.items() if value not in ("", None, [])}


def models(*folders: str | Path) -> list[dict[str, Any]]:
    """Every shipped model and judge, and every run in `folders`: size, what it is conditioned on, and the terms of its training data."""
    return [listing.to_dict() for listing in
            (*shipped_models(), *shipped_judges(), *(found for folder in folders for found in runs_in(Path(folder))))]


def shipped_models() -> Iterator[Listing]:
    """The models of the zoo, damaged ones with the reason."""
    for name, model in zoo.shipped().items():
        try:
            yield _listing(name, zoo.read(name), state="shipped", card=model.folder / model.card)
        except SynthoraxError as error:
            yield Listing(model=name, state=str(error))


def shipped_judges() -> Iterator[Listing]:
    """The judges of the zoo: networks that look at images and make none."""
    for name, judge in zoo.judges().items():
        card = judge.folder / judge.card
        try:
            zoo.judge_weights(name)
            head = read_card(card)
            yield Listing(model=name, state="shipped judge, makes no images", image_size=int(head["image_size"]),
                          outlines=tuple(head["outlines"]), licences=tuple(licences_of(head["data"])), card=str(card))
        except SynthoraxError as error:
            yield Listing(model=name, state=str(error))


def runs_in(folder: Path) -> Iterator[Listing]:
    """Run folders in and below `folder`, also those that are not finished. InputError where there is no such folder."""
    if not folder.is_dir():
        raise InputError("no such folder", file=folder)
    found = {path.parent for path in folder.rglob(WEIGHTS_NAME)} | {path.parent for path in folder.rglob(CONFIG_NAME)}
    for place in sorted(found):
        weights = place / WEIGHTS_NAME
        if not weights.is_file():
            yield Listing(model=str(place), state="not finished")
            continue
        try:
            yield _listing(str(place), ModelFile.read(weights), state="finished", card=place / "card.md")
        except SynthoraxError as error:
            yield Listing(model=str(place), state=str(error))


def _listing(name: str, file: ModelFile, *, state: str, card: Path) -> Listing:
    spec, facts = file.spec, file.facts
    return Listing(model=name, state=state, family=spec.family, image_size=spec.image_size, findings=spec.findings, sites=spec.sites,
                   conditions=spec.conditions, licences=tuple(licences_of(facts.get("sources", ()))) or ("not noted",),
                   card=str(card) if card.exists() else "")
