"""A comparison that was trained in several places: trainings made elsewhere join its table, where the terms are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synthorax.errors import InputError
from synthorax.evaluation.comparison.pages import summary
from synthorax.files import check_kind, read_json_object
from synthorax.former_names import with_present_comparison

SCHEMA = "synthorax.comparison/2"
FORMER_SCHEMAS = ("synthorax.comparison/1",)
"""read with present names, see `former_names.COMPARISON`"""
Record = Mapping[str, Any]


def read_report(path: Path) -> dict[str, Any]:
    """A comparison.json. Raises InputError where it is none."""
    remedy = "name a comparison.json that compare wrote"
    report = read_json_object(path, {"schema": str}, remedy=remedy)
    if report["schema"] not in (SCHEMA, *FORMER_SCHEMAS):
        raise InputError(f"its schema is {report['schema']!r}; this version of Synthorax reads {', '.join((*FORMER_SCHEMAS, SCHEMA))}",
                         file=path, remedy=remedy)
    for key, kind in (("claim", dict), ("settings", dict), ("judges", list)):
        check_kind(report, key, kind, where=path, remedy=remedy)
    return with_present_comparison(report) | {"schema": SCHEMA}


def check_joins(head: Record, pairs: Iterable[tuple[str, int]], others: Mapping[Path, Record]) -> None:
    """Refuse, with InputError, comparisons on other terms, by other judges, with other settings, or of trainings that are there already.

    `head` has the claim, settings and judges of the comparison that they are to join, `pairs` its recipes and seeds.
    """
    known, settings = set(pairs), dict(head["settings"])
    for path, other in others.items():
        changed = [name for name, value in head["claim"].items() if other["claim"].get(name) != value]
        changed += [f"the settings of {name}" for name, values in other["settings"].items() if settings.setdefault(name, values) != values]
        if head["judges"] != other["judges"]:
            changed.append("the judges")
        if changed:
            raise InputError(f"holds a comparison on other terms: {', '.join(changed)} differ", file=path)
        for record in other["records"]:
            pair = (record["arm"], record["seed"])
            if pair in known:
                raise InputError(f"holds {pair[0]} with seed {pair[1]}, which is compared already", file=path,
                                 remedy="leave out the file, or that recipe or seed here")
            known.add(pair)


def merge_comparisons(report: Record, others: Sequence[Record]) -> dict[str, Any]:
    """The report with the trainings of the others, which `check_joins` let pass; its own recipes stand first."""
    records = [*report["records"], *(record for other in others for record in other["records"])]
    reports = (report, *others)
    return {**report, "records": records, "arms": summary(records), "seeds": sorted({record["seed"] for record in records}),
            "settings": {name: values for one in reversed(reports) for name, values in one["settings"].items()},
            **{key: list(dict.fromkeys(name for one in reports for name in one[key])) for key in ("two_stages", "notes")}}
