"""Progress on stderr where there is no terminal."""

from __future__ import annotations

import time

import pytest

from synthorax.progress import progress_line


def test_time_left_counts_only_what_is_done_since_the_work_went_on(monkeypatch: pytest.MonkeyPatch,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress_line("train") as progress:
        for clock[0], fraction in ((1.0, 0.5), (101.0, 0.6)):  # 50 % were behind it; a tenth took 100 s
            progress(fraction, "step")
    assert "60%, 6 min 40 s left" in capsys.readouterr().err
