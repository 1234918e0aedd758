"""A request in the words of the command line, as a row of a plan: findings, a lesion's place, masks, boxes and text."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from synthorax.data.masks import is_organ
from synthorax.data.vocabulary import canonical
from synthorax.errors import InputError, UsageError
from synthorax.options import Request
from synthorax.protocols import ModelSpec
from synthorax.steps.planning.row import PlanRow
from synthorax.types import Lesion, Stated


def row_of(request: Request, spec: ModelSpec, *, seed: int = 0) -> PlanRow:
    """The request as a row of a plan, in the names of a model. Raises UsageError, or InputError for a finding that nobody knows."""
    labels: dict[str, Stated] = {}
    for names, stated in ((request.finding, Stated.PRESENT), (request.without, Stated.ABSENT), (request.uncertain, Stated.UNCERTAIN)):
        for name in names:
            finding = canonical(name, allow=spec.findings)
            if labels.setdefault(finding, stated) is not stated:
                raise UsageError(f"'{finding}' is asked for as {labels[finding].value} and as {stated.value}; leave out one of the two")
    masks: dict[str, str] = {}
    lesions: list[Lesion] = []
    for name, path in request.mask:
        place = str(Path(path).resolve())
        kind = _mask_class(name, spec) if name else _one_finding("a mask without a class", labels)
        if not is_organ(kind):
            lesions.append(Lesion(finding=kind, mask=place))
        elif masks.setdefault(kind, place) != place:
            raise UsageError(f"two masks of '{kind}'; join them in one image")
    for name, box in request.box:
        finding = canonical(name, allow=spec.findings) if name else _one_finding("a box without a finding", labels)
        lesions.append(Lesion(finding=finding, box=box))
    return PlanRow(seed=seed, labels=labels, view=request.view.upper(), sex=request.sex.upper(), age_years=request.age, site=request.site,
                   text=request.text, lesions=_described(request, lesions, labels), masks=masks)


def _described(request: Request, lesions: list[Lesion], labels: dict[str, Stated]) -> tuple[Lesion, ...]:
    """The lesions, with side, size, severity and place of the one finding."""
    described = [name for name in ("side", "size", "severity", "at") if name in request.stated()]
    if not described:
        return tuple(lesions)
    finding = _one_finding(described[0], labels)
    own = [lesion for lesion in lesions if lesion.finding == finding] or [Lesion(finding=finding)]
    if len(own) > 1:
        raise UsageError(f"{described[0]} could belong to {len(own)} lesions of '{finding}'; write them in a plan.csv")
    x, y = request.at or (math.nan, math.nan)
    whole = replace(own[0], side=request.side.lower(), size=request.size, severity=request.severity, x=x, y=y)
    return (whole, *(lesion for lesion in lesions if lesion.finding != finding))


def _one_finding(what: str, labels: dict[str, Stated]) -> str:
    shown = [name for name, stated in labels.items() if stated is Stated.PRESENT]
    if len(shown) != 1:
        raise UsageError(f"{what} needs exactly one finding to belong to, and {len(shown)} are asked for; several go into a plan.csv")
    return shown[0]


def _mask_class(name: str, spec: ModelSpec) -> str:
    """A class as the model calls it; a name that is no finding is taken for an organ, which the check of the plan then knows or not."""
    organs = {known.casefold(): known for known in spec.masks if is_organ(known)}
    if name.casefold() in organs:
        return organs[name.casefold()]
    try:
        return canonical(name, allow=spec.findings)
    except InputError:
        return name.casefold()
