"""The balance dimension: how common each finding is among the training images, before and after the synthetic ones are added."""

from __future__ import annotations

import numpy as np

from synthorax.data.vocabulary import NO_FINDING
from synthorax.evaluation.report.record import BalanceRow, Dimension
from synthorax.evaluation.statistics.roc import wilson
from synthorax.types import ImageSet, Score


def balance(before: ImageSet, added: ImageSet) -> Dimension:
    """Share of training images that show each requested finding, after and (as floor) before."""
    scores = []
    for row in balance_rows(before, added):
        if row.after > row.before and row.finding != NO_FINDING and row.total_before:
            low, high = wilson(row.after, row.total_after)
            scores.append(Score(metric="prevalence_after", value=row.after / row.total_after, low=low, high=high, n_real=row.total_before,
                                n_synthetic=row.total_after - row.total_before, group=row.finding,
                                floor=row.before / row.total_before, note=f"{row.before} images before, {row.after} after"))
    if not scores:
        return Dimension("not_applicable", reason="the synthetic images state no finding")
    return Dimension("measured", scores=tuple(scores))


def balance_rows(before: ImageSet, added: ImageSet) -> tuple[BalanceRow, ...]:
    """How many training images show each finding, before and after the synthetic ones are added."""
    rows = []
    for finding in before.findings:
        old, new = before.column(finding), added.column(finding)
        stated_old, stated_new = int((~np.isnan(old)).sum()), int((~np.isnan(new)).sum())
        present_old, present_new = int((old == 1).sum()), int((new == 1).sum())
        rows.append(BalanceRow(finding=finding, before=present_old, after=present_old + present_new,
                               total_before=stated_old, total_after=stated_old + stated_new))
    return tuple(rows)
