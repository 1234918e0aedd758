"""Calls of the command line in forks of one process, so that a dozen of them cost one import; also with little room for files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = """
import json, os, resource, sys
from synthorax.cli import app as cli
from synthorax.verbs import data, evidence, synthesis, training
def call(words, limit):
    ends, sys.argv = [os.pipe(), os.pipe()], ["synthorax", *words]
    sys.stdout.flush()
    if not (pid := os.fork()):
        for number, (_, end) in enumerate(ends, start=1):
            os.dup2(end, number)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    said = []
    for ours, theirs in ends:
        os.close(theirs)
    for ours, _ in ends:
        with os.fdopen(ours, "rb") as end:
            said.append(end.read().decode())
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *said]
print(json.dumps([call(*case) for case in json.load(sys.stdin)]))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Called:
    """How a call ended."""

    code: int
    out: str
    said: str

    @property
    def explained(self) -> bool:
        """Whether it was done, or refused in one sentence: no traceback, nothing on stdout."""
        return self.code == 0 or (self.code in (1, 2, 3) and "Traceback" not in self.said and not self.out and "synthorax: " in self.said)


def calls(cases: Sequence[Sequence[object]], *, file_limit: int | None = None, folder: Path | None = None) -> list[Called]:
    """Each of `cases` is the words of a call; files above `file_limit` bytes cannot be written. Calls begin in `folder`."""
    given = json.dumps([[[str(word) for word in words], file_limit] for words in cases])
    result = subprocess.run([sys.executable, "-c", PROGRAM], input=given, capture_output=True, text=True, check=False, cwd=folder)
    assert result.returncode == 0, result.stderr
    return [Called(code=code, out=out, said=said) for code, out, said in json.loads(result.stdout.splitlines()[-1])]
