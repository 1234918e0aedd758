"""Processor threads: idle ones sleep soon, and a training measures how many are fastest. Importing this file imports no torch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection

WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""OpenMP's settings, of GCC (in rounds) and of LLVM and Intel (in ms), for how long a thread spins before it sleeps"""
MAX_THREADS = 1024
"""more than any machine has use for; OpenMP crashes when it cannot start as many as are asked for"""
TRIAL_SECONDS = 1.0
"""time that a trial gives each number of threads, after one step that is not counted"""
MIN_TRIAL_STEPS = 2
"""steps that it takes at least, unless they are very long"""
LONG_SECONDS = 10.0
"""a trial is content with a single step of this length"""
AGAIN_SECONDS = 600.0
"""training time after which another trial finds out whether other work has left the machine"""
HALF_AS_FAST = 2.0
WORTH_A_THREAD = 0.95
"""more threads are taken only if they need less than this part of the time"""
HOPELESS = 1.25
"""still fewer threads are not tried where fewer have taken this many times as long as the best number so far"""


def let_idle_threads_sleep() -> None:
    """Tell OpenMP not to spin for long, unless the user has told it how to wait; it counts only before torch is loaded.

    By default a thread that waits for the others spins for milliseconds. Beside another busy process it then takes the core that the thread
    it waits for needs, and a training step takes up to twenty times as long. See docs/explanation/speed.md.
    """
    if not os.environ.keys() & {*WAITING, "OMP_WAIT_POLICY"}:
        os.environ.update(WAITING)


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pace:
    """The number of threads of a training, by how long its steps take.

    A trial takes all threads, then half as many, and so on while that is of use, for about a second each, and keeps the fastest. There is
    one at the beginning, one when steps take twice as long as they did, and one every ten minutes.
    """

    def __init__(self, most: int, *, apply: Callable[[int], None], threads: int = 0) -> None:
        """`apply` sets the number of threads; `threads` is what an earlier part of the training chose, 0 if there was none."""
        self.most, self.apply = most, apply
        self.threads, self.fresh = 0, True  # fresh: no step has been taken with this number yet
        self.trying = not 0 < threads <= most
        self.trial: dict[int, float] = {}  # seconds of a step by number of threads
        self.tried: list[float] = []  # seconds of the trial's steps with this number
        self.usual, self.since_trial = 0.0, 0.0  # seconds of a step, and of all steps since the last trial
        self.last: deque[float] = deque(maxlen=5)
        self._set(most if self.trying else threads)

    def step_took(self, seconds: float) -> None:
        """Note how long a step took, and set the number of threads for the next one."""
        if self.trying:
            self._try(seconds)
        else:
            self._watch(seconds)

    def _try(self, seconds: float) -> None:
        if self.fresh and seconds < LONG_SECONDS:  # the first step with a number of threads prepares its kernels
            self.fresh = False
            return
        self.tried.append(seconds)
        total = sum(self.tried)
        if total < LONG_SECONDS and (total < TRIAL_SECONDS or len(self.tried) < MIN_TRIAL_STEPS):
            return
        self.trial[self.threads] = _median(self.tried)
        best = min(self.trial.values())
        if self.threads > 1 and self.trial[self.threads] <= HOPELESS * best:
            self._set(self.threads // 2)
            return
        chosen = min(count for count, each in self.trial.items() if WORTH_A_THREAD * each <= best)
        self.usual, self.since_trial, self.trying = self.trial[chosen], 0.0, False
        self._set(chosen)

    def _watch(self, seconds: float) -> None:
        self.last.append(seconds)
        self.since_trial += seconds
        if len(self.last) < 5:
            return
        now = _median(self.last)
        self.usual = self.usual or now
        if now > HALF_AS_FAST * self.usual or self.since_trial > AGAIN_SECONDS:
            self.trial, self.trying = {}, True
            self._set(self.most)

    def _set(self, threads: int) -> None:
        if threads != self.threads:
            self.apply(threads)
        self.threads, self.fresh = threads, True
        self.tried = []
        self.last.clear()


def _median(seconds: Collection[float]) -> float:
    """The upper median; the package's start has no time for the module `statistics`."""
    return sorted(seconds)[len(seconds) // 2]
