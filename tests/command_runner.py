"""Commands as a user types them: each in a process of its own, in a folder of its own, with everything it prints and the time it took.

Importing torch and its like takes seconds, so the processes are forked from one that has imported outside libraries alone. Each imports
this package anew. Run as a script, this file is that process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTSIDE = ("torch", "numpy", "scipy.stats", "scipy.ndimage", "scipy.optimize", "scipy.signal", "sklearn.linear_model", "sklearn.neighbors",
           "pandas", "PIL.Image", "PIL.ImageDraw", "pydicom", "safetensors.torch", "filelock", "typer", "rich.progress", "rich.traceback")

FEW_UPDATES = {f"synthorax.judges.{name}": {"updates": "2"} for name in
               ("classifier:ClassifierConfig", "same_patient:SamePatientConfig", "segmenter:SegmenterConfig")}
"""judges learn for two updates; no option of a verb says how long, because nobody should have to choose it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Called:
    """What a command left: its exit code, what it printed, and its processor time."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    cpu_seconds: float

    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout; anything else there, and numbers that JSON does not know, are an error."""
        found = json.loads(self.out, parse_constant=_refused)
        assert isinstance(found, dict), self.out
        return found

    def __str__(self) -> str:
        return f"synthorax {' '.join(self.words)}\nexit code {self.code}, {self.cpu_seconds:.1f} s\n{self.out}\n{self.err}"


class CommandRunner:
    """Runs commands; `environment` is added to that of the tests."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **environment})

    def call(self, *words: str, folder: Path, stop_at: str = "", defaults: Mapping[str, Mapping[str, str]] | None = None) -> Called:
        """Run `synthorax WORDS` in `folder`, or the Python file that the first word names, and wait for its end.

        With `stop_at`, it gets Ctrl-C as it opens a file with that in its path. `defaults` are other ones for the fields of configs, by
        "module:class", where no option of the command makes it small: Python expressions in the names of that module.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        outputs = [folder.with_name(f"{folder.name}.{name}") for name in ("stdout", "stderr")]
        job = {"words": words, "folder": str(folder), "outputs": [str(path) for path in outputs], "stop_at": stop_at,
               "defaults": {name: dict(fields) for name, fields in (defaults or {}).items()}}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        code, seconds = json.loads(self._server.stdout.readline())
        out, err = (path.read_text(encoding="utf-8") for path in outputs)
        return Called(words=words, code=code, out=out, err=err, cpu_seconds=seconds)

    def close(self) -> None:
        """End the process from which commands are forked."""
        self._server.communicate()


def check_result(called: Called, *, code: tuple[int, ...]) -> None:
    """What every call has in common: its exit code, plain text, and never a traceback."""
    assert called.code in code and "Traceback" not in called.err and "\x1b" not in called.out + called.err, str(called)


@contextlib.contextmanager
def command_runner(environment: Mapping[str, str]) -> Iterator[CommandRunner]:
    """A runner for the length of a block."""
    one = CommandRunner(environment)
    try:
        yield one
    finally:
        one.close()


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _serve() -> None:
    """Answer each job, a line of JSON, with the exit code and the processor time of its process."""
    for name in OUTSIDE:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        child = _forked()
        if child == 0:
            _run(job["words"], Path(job["folder"]), job["outputs"], stop_at=job["stop_at"], defaults=job["defaults"])
        _, status, usage = os.wait4(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]), flush=True)


def _forked() -> int:
    """A second process; on a busy machine there may be none for a moment."""
    for _ in range(300):
        with contextlib.suppress(BlockingIOError):
            return os.fork()
        time.sleep(0.2)
    return os.fork()


def _run(words: Sequence[str], folder: Path, outputs: Sequence[str], *, stop_at: str, defaults: Mapping[str, Mapping[str, str]]) -> None:
    """Be the process of one command."""
    for number, path in enumerate((os.devnull, *outputs)):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    sys.argv = list(words) if words[0].endswith(".py") else ["synthorax", *words]
    if stop_at:
        sys.addaudithook(_stopping(stop_at))
    try:
        for name, fields in defaults.items():
            names = vars(importlib.import_module(name.partition(":")[0]))
            names[name.partition(":")[2]].__init__.__kwdefaults__.update({field: eval(text, names) for field, text in fields.items()})
        if words[0].endswith(".py"):
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
        else:
            importlib.import_module("synthorax.cli.app").main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stopping(stop_at: str) -> Callable[[str, tuple[Any, ...]], None]:
    sent = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal sent
        if event == "open" and not sent and stop_at in str(arguments[0]):
            sent = True
            os.kill(os.getpid(), signal.SIGINT)

    return hook


if __name__ == "__main__":
    _serve()
