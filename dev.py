"""Set up and run Synthorax from a fresh clone. Needs Python 3.11 or later, and nothing else.

  python3 dev.py demo     the main job on built-in drawings; ends with the path of the report
  python3 dev.py test     the tests; what follows goes to pytest, such as `-k plan` or `-n 0`
  python3 dev.py plain    the tests that depend on the processor, as on one with AVX2 alone
  python3 dev.py check    ruff, mypy, the contracts on imports, and the documentation site without a broken link
  python3 dev.py docs     the documentation site in build/site
  python3 dev.py setup    only make the environment .venv, beside this file
  python3 dev.py lock     choose the package versions again and write requirements.lock
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "synthorax-setup.sha256"
TORCH = "torch==2.13.0"
SITE = (str(ROOT / "bench/site/build.py"),)
NEEDED_TO_BUILD = ("setuptools>=77", "wheel", "colorama")  # colorama: several packages want it on Windows only
NOT_LOCKED = re.compile(r"(torch|torchvision|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
LOCK_HEADER = f"""\
# Exact versions with their hashes, for Python 3.11 to 3.13. Written by `python3 dev.py lock`; do not edit.
# {TORCH} comes on top, without a hash: docs/decisions/0002-torch-outside-the-lock.md says why.
"""


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command not in COMMANDS:
        print(__doc__, file=sys.stdout if command in ("-h", "--help") else sys.stderr)
        return 0 if command in ("-h", "--help") else 2
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 - an older Python shall say so instead of failing somewhere
            raise SetupError(f"this is Python {sys.version.split()[0]}, and 3.11 or later is needed; try `python3.11 dev.py {command}`")
        return COMMANDS[command](rest)
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dev.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def demo(rest: list[str]) -> int:
    """`synthorax demo --out demo`, or another --out."""
    setup()
    if not any(part.split("=")[0] == "--out" for part in rest):
        rest = ["--out", "demo", *rest]
    return _python("-m", "synthorax", "demo", *rest)


def test(rest: list[str]) -> int:
    """pytest with one worker a core (at most 4), each on one thread."""
    setup()
    workers = str(min(4, os.cpu_count() or 1))
    return _python("-m", "pytest", "-n", workers, *rest, cwd=ROOT, OMP_NUM_THREADS="1")


def plain(rest: list[str]) -> int:
    """The tests marked `processor`, with the instruction sets of PyTorch and oneDNN limited to AVX2, in one process."""
    setup()
    return _python("-m", "pytest", "-n", "0", "-m", "processor", *rest, cwd=ROOT, OMP_NUM_THREADS="1", ATEN_CPU_CAPABILITY="avx2",
                   ONEDNN_MAX_CPU_ISA="AVX2")


def check(rest: list[str]) -> int:
    """All static checks, also after one of them has failed."""
    setup()
    tools = {"ruff": ("-m", "ruff", "check", "."), "mypy": ("-m", "mypy"),
             "imports": ("-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"), "docs": SITE}
    failed = [name for name, tool in tools.items() if _python(*tool, *rest, cwd=ROOT) != 0]
    print(f"dev.py check: {', '.join(failed)} failed" if failed else "dev.py check: ruff, mypy, imports and docs passed")
    return 1 if failed else 0


def docs(rest: list[str]) -> int:
    """The site from docs/, the docstrings and the command line; a broken link or an unknown name is an error."""
    setup()
    return _python(*SITE, *rest, cwd=ROOT)


def setup(rest: list[str] | None = None) -> int:
    """Make .venv, or complete it; returns at once if nothing has changed since the last time."""
    if STAMP.exists() and STAMP.read_text() == _digest():
        return 0
    STAMP.unlink(missing_ok=True)
    _say("1/4 the environment .venv")
    if not _is_healthy():
        _make_venv(VENV)
    _say("2/4 packages, each checked against its hash in requirements.lock")
    _pip("install", "--require-hashes", "--no-deps", "-r", str(LOCK))
    _say(f"3/4 {TORCH.replace('==', ' ')}, the largest download")
    _pip("install", "--no-warn-conflicts", TORCH)
    _say("4/4 synthorax itself")
    _pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if _python("-c", "import torch, synthorax.cli.app") != 0:
        raise SetupError("everything is installed, but it cannot be imported; delete .venv and try again")
    STAMP.write_text(_digest())
    _say(f"ready; to use it yourself: {_executable(VENV).parent / 'synthorax'} --help")
    return 0


def lock(rest: list[str]) -> int:
    """Resolve all dependencies anew, with pip-tools in an environment of its own, and write requirements.lock."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"], *NEEDED_TO_BUILD, TORCH]
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "all.in", Path(folder) / "all.txt"
        source.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        _make_venv(Path(folder) / "venv")
        _pip("install", "pip-tools", venv=Path(folder) / "venv")
        options = ("--generate-hashes", "--allow-unsafe", "--strip-extras", "--no-annotate", "--no-header", "--no-emit-options",
                   "--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--quiet")
        code = _python("-m", "piptools", "compile", *options, *rest, "--output-file", str(result), str(source),
                       venv=Path(folder) / "venv")
        if code != 0:
            raise SetupError("no versions fit together; pip-tools says above what is in the way")
        entries = re.split(r"\n(?=\S)", result.read_text(encoding="utf-8").strip())
    kept = sorted(entry.strip() for entry in entries if re.match(r"[\w.-]+==", entry) and not NOT_LOCKED.match(entry))
    LOCK.write_text(LOCK_HEADER + "\n".join(kept) + "\n", encoding="utf-8")
    _say(f"{len(kept)} packages in {LOCK.name}")
    return 0


COMMANDS = {"demo": demo, "test": test, "plain": plain, "check": check, "docs": docs, "setup": setup, "lock": lock}


def _digest() -> str:
    """What the environment was made from: the files that name its packages, this Python, and where it lies."""
    parts = [LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), TORCH.encode(), sys.version.encode(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _executable(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def _is_healthy() -> bool:
    """Whether .venv has a Python that starts, has pip, and is of the version that runs this file."""
    probe = "import pip, sys; print(sys.version_info[:2] == tuple(map(int, sys.argv[1:])) and sys.prefix != sys.base_prefix)"
    try:
        result = subprocess.run([_executable(VENV), "-c", probe, *map(str, sys.version_info[:2])], env=_environment(),
                                capture_output=True, text=True, check=False)
    except OSError:
        return False
    return result.stdout.strip() == "True"


def _make_venv(folder: Path) -> None:
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], env=_environment(), check=False)
    if result.returncode != 0:
        raise SetupError("no virtual environment can be made (see above); Debian and Ubuntu need the package python3-venv")


def _pip(*arguments: str, venv: Path = VENV) -> None:
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    if _python("-m", "pip", *arguments, *quiet, "--no-input", "--disable-pip-version-check", venv=venv) != 0:
        raise SetupError(f"`pip {' '.join(arguments)}` failed (see above). Check the network, the free disk space and pip's own "
                         "settings; the same command then goes on from here")


def _python(*arguments: str, venv: Path = VENV, cwd: Path | None = None, **variables: str) -> int:
    return subprocess.run([str(_executable(venv)), *arguments], cwd=cwd, env=_environment() | variables, check=False).returncode


def _environment() -> dict[str, str]:
    """This environment without what would lead Python or pip to packages outside .venv."""
    misleading = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_HASHES", "__PYVENV_LAUNCHER__")
    return {key: value for key, value in os.environ.items() if key not in misleading} | {"PYTHONNOUSERSITE": "1", "PIP_USER": "0"}


def _say(text: str) -> None:
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
