"""Small files of ours that are damaged: refused with file and remedy, or made good; never a traceback."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import synthorax as sx
from synthorax.data.dataset import read_dataset
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.data.sources import origins_of
from synthorax.errors import InputError, SynthoraxError
from synthorax.files import json_object, write_with_digest
from synthorax.run import read_spec
from synthorax.steps.models.trained_model import open_model
from synthorax.steps.planning.plan import read_plan
from synthorax.training.checkpoint import load_checkpoint
from synthorax.zoo import judges, shipped
from trainings import smallest, train_here

TINY = ("model.image_size=32", "model.channels=8", "model.multipliers=[1, 2]", "model.attention=[false, false]", "model.embedding=16",
        "train.steps=2", "train.batch_size=4", "train.sample_every=0", "train.checkpoint_every=1", "sample.steps=1")
ODD: tuple[Any, ...] = (None, True, -1, 1e400, "", "x", [], [[]], {}, {"a": 1}, [None], "9" * 400)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, prepared, with a finished run, a plan and what was made of it."""
    folder = tmp_path_factory.mktemp("made")
    write_phantom_dataset(folder / "images", num=30, size=32, seed=0, prevalence={"Pneumothorax": 0.4})
    data = sx.prepare(folder / "images", size=32, out=folder / "prepared")
    plan = sx.plan(data, count={"Pneumothorax": 2}, out=folder / "plan.csv")
    run = sx.train("edm-64", data, out=folder / "run", overrides=TINY, threads=1)
    sx.generate(run, plan, out=folder / "synthetic", threads=1)
    return folder


@pytest.fixture
def copied(outputs: Path, tmp_path: Path) -> Path:
    shutil.copytree(outputs, tmp_path / "copy")
    return tmp_path / "copy"


def damaged(content: bytes, *, seed: int, num: int = 60) -> Iterator[bytes]:
    """The file cut, with other bytes, and as JSON with keys left out and values of other kinds, also deep inside."""
    draw = random.Random(seed)
    yield from (b"", b"[]", b"3", b"\xff\xfe", content[: len(content) // 2], b"[" * 100_000)
    for _ in range(num // 3):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 4, 30))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        yield bytes(changed)
    with contextlib.suppress(ValueError):
        for _ in range(num):
            record = json.loads(content)
            holder, key = draw.choice(places(record))
            if draw.random() < 0.4:
                del holder[key]
            else:
                holder[key] = draw.choice(ODD)
            yield json.dumps(record).encode()


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every part of a JSON value with what holds it; those near the top more often."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    below = [place for key in keys for place in places(value[key])]
    return [(value, key) for key in keys] * max(1, len(below) // (2 * len(keys) or 1)) + below


def ends_well(work: Callable[[], Any], what: str) -> None:
    """Done, or refused in a sentence that names a file."""
    try:
        work()
    except SynthoraxError as refusal:
        assert len(str(refusal)) < 2000 and "Traceback" not in str(refusal)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "prepared": ("prepared/prepared.json", lambda at: json.dumps(Prepared.load(at / "prepared").to_dict())),
    "prepare again": ("prepared/prepared.json", lambda at: sx.prepare(at / "images", size=32, out=at / "prepared")),
    "claim": ("prepared/synthorax.json", lambda at: sx.prepare(at / "images", size=32, out=at / "prepared")),
    "fingerprint": ("prepared/fingerprint.json", lambda at: Prepared.load(at / "prepared").summary()),
    "dataset": ("images/dataset.json", lambda at: origins_of(read_dataset(at / "images"))),
    "synthetic": ("synthetic/dataset.json", lambda at: origins_of(read_dataset(at / "synthetic"))),
    "plan": ("plan.csv", lambda at: read_plan(at / "plan.csv").check(read_spec(at / "run/model.safetensors")[0])),
    "data": ("run/data.json", lambda at: sx.train("edm-64", at / "prepared", out=at / "run", overrides=TINY, threads=1)),
    "config": ("run/config.toml", lambda at: sx.train("edm-64", at / "prepared", out=at / "run", overrides=TINY, threads=1)),
    "generation": ("synthetic/synthorax.json", lambda at: sx.generate(at / "run", at / "plan.csv", out=at / "synthetic", threads=1)),
}


@pytest.mark.parametrize("name", READERS)
def test_whatever_is_wrong_with_a_small_file_its_readers_end_well(name: str, copied: Path) -> None:
    file, read = READERS[name]
    path = copied / file
    whole, num = path.read_bytes(), 6 if name in ("data", "config", "generation", "prepare again", "claim") else 60
    for number, content in enumerate(damaged(whole, seed=len(name), num=num)):
        path.write_bytes(content)
        ends_well(lambda: read(copied), f"{name} {number}: {content[:300]!r}")


def redescribed(path: Path, described: bytes) -> None:
    """The same model file with another description, and the digest of that."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["synthorax"] = described.decode("utf-8", "replace")
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    write_with_digest(path, len(told).to_bytes(8, "little") + told + content[8 + length :])


def test_whatever_a_model_file_says_of_itself_its_readers_end_well_and_the_listing_goes_on(copied: Path) -> None:
    path = copied / "run/model.safetensors"
    whole = path.read_bytes()
    described = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["synthorax"].encode()
    for number, changed in enumerate(damaged(described, seed=7, num=80)):
        path.write_bytes(whole)
        redescribed(path, changed)
        for work in (lambda model: model.settings, lambda model: model.support, lambda model: model.network, lambda model: model.stages):
            ends_well(lambda work=work: work(open_model(copied / "run")), f"{number}: {changed[:300]!r}")
        listed = [row["model"] for row in sx.models(copied)]
        assert listed == [*shipped(), *judges(), str(copied / "run")]


def test_a_stray_line_in_the_log_loses_itself_alone(tmp_path: Path) -> None:
    train_here(smallest("diffusion", "train.steps=3", "train.checkpoint_every=1"), tmp_path)
    log = tmp_path / "metrics.jsonl"
    before = log.read_text().splitlines()
    stray = b'not json\n{"step": "two"}\n[3]\n\xff\xfe\n'
    log.write_bytes("\n".join(before[:2]).encode() + b"\n" + stray + before[2].encode() + b'\n{"step": 3, "fil')
    train_here(smallest("diffusion", "train.steps=4", "train.checkpoint_every=1"), tmp_path)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_where_every_checkpoint_is_damaged_the_training_does_not_begin_anew(tmp_path: Path) -> None:
    """One that is whole is gone on from; where none is, nothing is thrown away."""
    train_here(smallest("diffusion", "train.steps=3", "train.checkpoint_every=1"), tmp_path)
    newest, older = sorted((tmp_path / "checkpoints").glob("*.safetensors"), reverse=True)
    newest.write_bytes(b"gone")
    train_here(smallest("diffusion", "train.steps=3", "train.checkpoint_every=1"), tmp_path)
    log = (tmp_path / "metrics.jsonl").read_text()
    for path in (newest, older):
        write_with_digest(path, path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"no checkpoint is whole.*restore one of them.*or delete this folder to begin anew"):
        train_here(smallest("diffusion", "train.steps=4", "train.checkpoint_every=1"), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == log
    assert load_checkpoint(tmp_path / "none", modules={}, optimizers={})[0].step == 0


@pytest.mark.parametrize("content", [b"", b"[x]\nfile = 3", b"x = 3", b"[x]\nfile='a'\nsha256='b'\nformat='new'\ncard='c'", b"\xff"])
def test_a_damaged_table_of_shipped_models_is_refused_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "shipped.toml").write_bytes(content)
    if content:
        with pytest.raises(InputError, match="install it again"):
            shipped(tmp_path)
    else:
        assert shipped(tmp_path) == {}


def test_the_reader_says_what_is_wrong_and_what_to_do() -> None:
    for content, said in (("{", "not JSON"), ("[]", "not a JSON object"), ("{}", "does not state 'a'"), ('{"a": "1"}', "'a' is \"1\""),
                          ('{"a": true}', "'a' is true")):
        with pytest.raises(InputError, match=f"x.json: is damaged: .*{said}.*; begin anew"):
            json_object(content, {"a": int}, where="x.json", remedy="begin anew")
    assert json_object('{"a": 1}', {"a": float}, where="x", remedy="") == {"a": 1}
