"""May I use this folder? A verb claims the folder it writes to, holds it alone, and leaves everything else in it untouched.

A claim is `synthorax.json` in the folder: what is made there, and from which inputs. Unfinished work lies in a hidden folder inside, never
beside it, so a link or a mount point is as good as any other folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from synthorax.errors import InputError, explain_os_error
from synthorax.files import sha256, write_atomic, write_json
from synthorax.former_names import with_present_claims

CLAIM_NAME = "synthorax.json"
WORK_NAME = ".unfinished"
LOCK_NAME = ".lock"
FORMAT = 2
"""version of the claim; claims without one name inputs as versions of synthorax before 0.1.0 did"""
_OF_THE_SYSTEM = frozenset({"lost+found", ".DS_Store", "Thumbs.db", "desktop.ini"})
"""what file systems and desktops put into empty folders by themselves"""
_READ_WHOLE = frozenset({".csv", ".tsv", ".json", ".toml", ".txt", ".xlsx", ".xml"})
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A folder that this process holds, and may write to."""

    path: Path
    again: bool
    """whether an earlier call with the same inputs has worked here"""
    done: bool
    """whether that call has delivered its result"""

    @property
    def work(self) -> Path:
        """A hidden folder inside for unfinished work; it is removed when the call ends or, after a kill, by the next one."""
        work = self.path / WORK_NAME
        work.mkdir(exist_ok=True)
        return work

    def deliver(self, *, last: Sequence[str] = ()) -> None:
        """Move everything from `work` into the folder, files called `last` at the end, and note that the result is there.

        A kill on the way is made good by the next call. Raises InputError, with nothing moved, where a name has been taken meanwhile.
        """
        names = sorted(entry.name for entry in self.work.iterdir())
        names = [name for name in names if name not in last] + [name for name in last if name in names]
        for name in names:
            if os.path.lexists(self.path / name) and not _is_empty_folder(self.path / name):
                raise InputError(f"'{name}' has come to be there while this command worked", file=self.path, remedy="choose another --out")
        _note(self.path, delivering=names)
        _finish_delivery(self.path, names)

    def finish(self) -> None:
        """Note that the result is there, without a delivery."""
        _note(self.path, done=True)

    def has(self, part: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a part of the work is finished; InputError where that was made from other inputs."""
        claim = _claim_of(self.path)
        earlier = claim.get("parts", {}).get(part)
        if earlier is None:
            return False
        if changed := _differences(claim, earlier, _plain(inputs)):
            raise InputError(f"holds {part}{_age(claim)} with other {changed}", file=self.path, remedy="choose another --out")
        return True

    def add(self, part: str, inputs: Mapping[str, Any]) -> None:
        """Note that a part is finished."""
        _note(self.path, parts=_claim_of(self.path).get("parts", {}) | {part: _plain(inputs)})


@contextmanager
def claimed(out: str | Path, *, kind: str, inputs: Mapping[str, Any], take_over: bool = False,
            drafts: Collection[str] = (), wait_seconds: float = 0,
            former: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None) -> Iterator[Folder]:
    """Hold `out` for this process and for one piece of work: an empty or absent folder, or one that the same work has claimed before.

    `kind` says what is made, as in "a prepared folder"; `inputs`, JSON-ready by their names in messages, are all that it depends on:
    digests, not only paths. `take_over` says that the folder is known to hold such work, though without a claim. A claim whose work has
    left nothing but `drafts` binds nobody. `former` gives inputs that an earlier version of synthorax noted as they are noted now, where
    that takes more than other names of keys. Any other folder is refused with an InputError and not touched. If the work fails before
    anything was delivered, the folder is left as it was found. A result that is there may be read by many; otherwise another process that
    is at work is waited for `wait_seconds`.

    >>> with claimed("kept", kind="a screening", inputs={"seed": 0}) as folder:  # doctest: +SKIP
    ...     if not folder.done:
    ...         (folder.work / "metadata.csv").write_text("file_name")
    ...         folder.deliver()
    """
    out, wanted = Path(out), {"format": FORMAT, "kind": kind, "inputs": _plain(inputs)}
    claim = _standing(out, wanted, take_over=take_over, drafts=drafts, former=former)  # nothing is written where the answer is no
    if claim.get("done"):
        yield Folder(path=out, again=True, done=True)
        return
    with only_user(out, wait_seconds=wait_seconds):
        claim = _standing(out, wanted, take_over=take_over, drafts=drafts, former=former)
        try:
            if not claim:
                with _explain_disk_errors(out):
                    write_json(out / CLAIM_NAME, wanted)
            yield Folder(path=out, again=bool(claim), done=_recover(out, claim))
        finally:
            _tidy(out)


def claimed_inputs(folder: Path) -> Mapping[str, Any]:
    """What the work in a folder was begun from; nothing where there is no claim."""
    inputs: Mapping[str, Any] = _claim_of(folder).get("inputs", {})
    return inputs


def discard(folder: Path) -> None:
    """Remove what was delivered to a claimed folder, and the folder unless something else is in it; nothing where there is no claim."""
    claim = _claim_of(folder)
    for name in claim.get("holds", ()):
        place = folder / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    if claim:
        (folder / CLAIM_NAME).unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextmanager
def only_user(folder: Path, *, wait_seconds: float = 0) -> Iterator[None]:
    """Hold a folder for one process; a second one is refused at once instead of spoiling the first one's files.

    A folder that it had to make and that is empty in the end, because the work was refused, is removed.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    with _explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME)
        try:
            lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise InputError("is in use by another process", file=folder, remedy="wait for it, or choose another --out") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            (folder / LOCK_NAME).unlink()
        lock.release()
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()


def write_once(path: Path, content: bytes) -> None:
    """Write a file. One that is there with this content is left as it is; InputError for another file, or where none can be written."""
    _refuse_odd(path.parent)
    if path.is_dir():
        raise InputError("is a folder, and a file is to be written", file=path, remedy="choose another --out")
    if os.path.lexists(path):
        if not path.exists() or path.read_bytes() != content:
            raise InputError("is there already, with another content", file=path, remedy="choose another --out, or delete the file")
        return
    with _explain_disk_errors(path):
        write_atomic(path, content)


def stamps(folder: Path, *, without: Path | None = None) -> dict[str, str]:
    """What a folder of images holds now, for a claim: a digest of its tables, by content, and one of all other files, by size and time.

    Hidden files and everything below `without`, where results go, are left out.
    """
    tables, others, apart = hashlib.sha256(), hashlib.sha256(), None if without is None else without.resolve()
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and (here / name).resolve() != apart)
        for path in (here / name for name in sorted(files) if not name.startswith(".")):
            entry = f"{path.relative_to(folder).as_posix()}\0{file_stamp(path)}\0".encode("utf-8", "surrogateescape")
            (tables if path.suffix.lower() in _READ_WHOLE else others).update(entry)
    return {"labels": tables.hexdigest(), "images": others.hexdigest()}


def identity_of(given: str | Path | None) -> Any:
    """What a claim says of a name, a file or a folder that was given: what is in it now, or the name."""
    if given is None:
        return None
    path = Path(given)
    return stamps(path) if path.is_dir() else file_stamp(path) if path.is_file() else str(given)


def file_stamp(path: Path) -> str:
    """What shows that a file was changed: the digest of tables and other small text, of all else size and time of change."""
    try:
        if path.suffix.lower() in _READ_WHOLE:
            return sha256(path)
        stat = path.stat()
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror})", file=path, remedy="copy the file or delete its row") from None
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _standing(out: Path, wanted: Mapping[str, Any], *, take_over: bool, drafts: Collection[str],
              former: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None) -> dict[str, Any]:
    """The claim of an earlier call for the same work, or nothing where the folder is free; else InputError."""
    _refuse_odd(out)
    claim, rest = _claim_of(out), _rest(out)
    inputs = claim.get("inputs", {})
    if former is not None and claim and "format" not in claim:
        inputs = former(inputs)
    changed = _differences(claim, inputs, wanted["inputs"])
    if claim.get("kind") == wanted["kind"] and not changed:
        return claim
    if not claim and WORK_NAME in _names(out):
        rest = rest | {WORK_NAME}
    if not rest - set(drafts if claim else ()) or (take_over and not claim):
        return {}
    if not claim:
        raise InputError("is not empty", file=out, remedy="choose another --out")
    if claim["kind"] != wanted["kind"]:
        raise InputError(f"holds {claim['kind']}", file=out, remedy="choose another --out")
    raise InputError(f"holds {claim['kind']}{_age(claim)} with other {changed}", file=out,
                     remedy="choose another --out, or delete the folder")


def _refuse_odd(out: Path) -> None:
    """Refuse what is no folder and can become none."""
    with _explain_disk_errors(out):
        if out.is_symlink() and not out.exists():
            raise InputError("is a link to nothing", file=out, remedy="choose another --out, or delete the link")
        place = next(place for place in (out, *out.parents) if place.exists() or place == place.parent)
        is_folder = place.is_dir()
    if not is_folder:
        problem = "is a file, and a folder is needed" if place == out else f"lies below {place}, which is a file"
        raise InputError(problem, file=out, remedy="choose another --out")


def _names(out: Path) -> frozenset[str]:
    with _explain_disk_errors(out):
        return frozenset(entry.name for entry in out.iterdir()) if out.exists() else frozenset()


def _rest(out: Path) -> frozenset[str]:
    """What is in the folder beside the marks of this module."""
    ours = {CLAIM_NAME, LOCK_NAME, WORK_NAME} if _claim_of(out) else {LOCK_NAME}
    return frozenset(name for name in _names(out) - ours - _OF_THE_SYSTEM
                     if not _is_empty_folder(out / name) and not (name.startswith(f".{CLAIM_NAME}.") and _TEMPORARY.fullmatch(name)))


def _is_empty_folder(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink() and not any(place.iterdir())


def _claim_of(out: Path) -> dict[str, Any]:
    """The claim in a folder; nothing where there is none, or where a file of that name is not ours."""
    try:
        claim = json.loads((out / CLAIM_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(claim, dict) and isinstance(claim.get("kind"), str) and isinstance(claim.get("inputs"), dict)
    ours = ours and isinstance(claim.get("parts", {}), dict) and all(isinstance(part, dict) for part in claim.get("parts", {}).values())
    return claim if ours and all(_are_names(claim.get(key, [])) for key in ("delivering", "holds")) else {}


def _are_names(value: Any) -> bool:
    """Whether these are names inside a folder, and no paths."""
    return isinstance(value, list) and all(isinstance(name, str) and name not in (".", "..") and Path(name).name == name for name in value)


def _note(out: Path, **facts: Any) -> dict[str, Any]:
    claim = _claim_of(out) | facts
    write_json(out / CLAIM_NAME, claim)
    return claim


def _recover(out: Path, claim: Mapping[str, Any]) -> bool:
    """Clear away what a killed call has left, and finish what it was delivering; whether the result is there."""
    for left in out.rglob(".*.tmp") if claim else ():
        if _TEMPORARY.fullmatch(left.name):
            left.unlink(missing_ok=True)
    if "delivering" in claim:
        _finish_delivery(out, claim["delivering"])
        return True
    shutil.rmtree(out / WORK_NAME, ignore_errors=True)
    return bool(claim.get("done"))


def _finish_delivery(out: Path, names: Sequence[str]) -> None:
    for name in names:
        if os.path.lexists(out / WORK_NAME / name):
            (out / WORK_NAME / name).rename(out / name)
    claim = {key: value for key, value in _claim_of(out).items() if key != "delivering"}
    write_json(out / CLAIM_NAME, claim | {"done": True, "holds": list(names)})
    shutil.rmtree(out / WORK_NAME, ignore_errors=True)


def _tidy(out: Path) -> None:
    """Remove unfinished work, and where nothing was delivered every trace of this call."""
    claim = _claim_of(out)
    if not claim or "delivering" in claim:  # the next call goes on with a delivery
        return
    shutil.rmtree(out / WORK_NAME, ignore_errors=True)
    if not _rest(out):
        (out / CLAIM_NAME).unlink(missing_ok=True)


@contextmanager
def _explain_disk_errors(out: Path) -> Iterator[None]:
    """Errors of the file system as one sentence with a remedy."""
    try:
        yield
    except OSError as error:
        raise explain_os_error(OSError(error.errno, error.strerror, str(out))) or error from error


def _plain(inputs: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(inputs, default=str))
    return plain


def _age(claim: Mapping[str, Any]) -> str:
    return "" if "format" in claim else " of an earlier version of synthorax"


_IN_WORDS = {"plan": "plan (request, number or seed)"}
"""inputs whose name in a claim says too little to somebody who gave their parts"""


def _differences(claim: Mapping[str, Any], earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names of the inputs of a claim, or of a part of it, that differ from those of now."""
    if "format" not in claim:
        earlier, now = with_present_claims(earlier), with_present_claims(now)
    return ", ".join(_IN_WORDS.get(name, name) for name in dict.fromkeys((*now, *earlier)) if earlier.get(name) != now.get(name))
