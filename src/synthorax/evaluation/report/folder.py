"""The folder of a report: evaluate, benefit and audit add to it what they measured of the same images; nothing in it is replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthorax.evaluation.report.record import NOT_ASKED_FOR, Dimension, Report
from synthorax.folders import Folder, claimed


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFolder:
    """Where one verb writes its part of a report; without a folder the report is only returned."""

    folder: Folder | None
    part: str
    settings: Mapping[str, Any]
    done: bool
    """whether an earlier call with the same settings has written this part"""

    def read(self) -> Report:
        """The report that is there."""
        assert self.folder is not None
        return Report.load(self.folder.path)

    def written(self, report: Report) -> Report:
        """The report joined with what was in the folder, and written there."""
        if self.folder is None:
            return report
        if (self.folder.path / "report.json").exists():
            report = merge_reports(self.read(), report)
        report.write(self.folder.path)
        self.folder.add(self.part, self.settings)
        return report


@contextmanager
def report_folder(out: str | Path | None, *, part: str, real: str, synthetic: str, settings: Mapping[str, Any]) -> Iterator[ReportFolder]:
    """Hold the folder `out` for a part, such as "an evaluation", of the report on two sets of images, named by their digests.

    Raises InputError where the folder holds anything but a report on the same images, or this part with other settings.
    """
    if out is None:
        yield ReportFolder(folder=None, part=part, settings=settings, done=False)
        return
    with claimed(out, kind="a report", inputs={"real images": real, "synthetic images": synthetic}) as folder:
        yield ReportFolder(folder=folder, part=part, settings=settings, done=folder.has(part, settings))


def merge_reports(earlier: Report, later: Report) -> Report:
    """One report of two on the same images: what was not asked for in one is taken from the other."""
    dimensions = {name: _of_two(earlier.dimensions[name], part) for name, part in later.dimensions.items()}
    inputs = {name: {**later.inputs.get(name, {}), **earlier.inputs.get(name, {})} for name in {**earlier.inputs, **later.inputs}}
    return replace(later, inputs=inputs, dimensions=dimensions, created=earlier.created, balance=later.balance or earlier.balance,
                   judges=(*earlier.judges, *(judge for judge in later.judges if judge not in earlier.judges)),
                   figures={**earlier.figures, **later.figures},
                   command="\n".join(dict.fromkeys((*earlier.command.splitlines(), *later.command.splitlines()))),
                   notes=tuple(dict.fromkeys((*earlier.notes, *later.notes))),
                   warnings=tuple(dict.fromkeys((*earlier.warnings, *later.warnings))))


def _of_two(earlier: Dimension, later: Dimension) -> Dimension:
    """The later one, unless it says less: a privacy without the gate of an audit, or nothing at all."""
    if later.reason == NOT_ASKED_FOR or ("gate" in earlier.extra and "gate" not in later.extra):
        return earlier
    return later
