"""Bad input is refused with file, row and remedy, exit code 3, and nothing half-written, all through the command line."""

from __future__ import annotations

import csv
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from synthorax.cli import app as cli
from synthorax.engine import started
from synthorax.errors import OutOfMemoryError
from synthorax.protocols import as_model
from synthorax.run import save_model
from synthorax.steps.planning.support import Support
from trainings import fresh_objective, smallest, toy_images, untrained

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process; returns exit code and stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["synthorax", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


def images(folder: Path, *, num: int = 12, header: str = "file_name,patient_id,findings", rows: list[str] | None = None,
          encoding: str = "utf-8") -> Path:
    """A dataset folder of noise images, one patient each; every third shows a mass."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(num):
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / f"images/{number}.png")
    default = [f"images/{number}.png,p{number},{'Mass' if number % 3 == 0 else 'No Finding'}" for number in range(num)]
    (folder / "metadata.csv").write_text("\n".join([header, *(default if rows is None else rows)]) + "\n", encoding=encoding)
    return folder


def prepare(run: Run, folder: Path, *more: object) -> tuple[int, str]:
    code, text = run("prepare", folder, "--size", 32, "--out", folder.parent / "prepared", *more)
    if code:
        left = [path.name for path in folder.parent.iterdir() if path != folder]
        assert not left, f"half-written: {left}"
    return code, text


def bomb(path: Path, *, side: int = 10_000) -> None:
    """A small PNG that unpacks to side x side grey pixels."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packed = zlib.compress(bytes((side + 1) * side), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
                     + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


def test_good_images_pass(run: Run, tmp_path: Path) -> None:
    assert prepare(run, images(tmp_path / "images")) == (0, "")


def test_unknown_finding_names_row_and_the_nearest_name(run: Run, tmp_path: Path) -> None:
    rows = ["images/0.png,p0,Mass", "images/1.png,p1,Efusion"]
    code, text = prepare(run, images(tmp_path / "images", rows=rows))
    assert code == 3
    assert "metadata.csv row 3" in text and "'Efusion'" in text and "did you mean 'Effusion'?" in text


def test_own_finding_is_accepted_when_allowed(run: Run, tmp_path: Path) -> None:
    rows = [f"images/{n}.png,p{n},{'Silicosis' if n % 2 else 'No Finding'}" for n in range(12)]
    folder = images(tmp_path / "images", rows=rows)
    assert prepare(run, folder)[0] == 3
    assert prepare(run, folder, "--allow", "Silicosis")[0] == 0


def test_missing_image_names_the_row(run: Run, tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    (folder / "images/4.png").unlink()
    code, text = prepare(run, folder)
    assert code == 3 and "row 6" in text and "images/4.png" in text


def test_duplicate_row_is_refused(run: Run, tmp_path: Path) -> None:
    rows = ["images/0.png,p0,Mass", "images/0.png,p0,Mass"]
    code, text = prepare(run, images(tmp_path / "images", rows=rows))
    assert code == 3 and "row 3" in text and "images/0.png" in text


def test_no_patient_column_needs_an_explicit_word(run: Run, tmp_path: Path) -> None:
    rows = [f"images/{n}.png,{'Mass' if n % 3 == 0 else 'No Finding'}" for n in range(12)]
    folder = images(tmp_path / "images", header="file_name,findings", rows=rows)
    code, text = prepare(run, folder)
    assert code == 3 and "patient" in text
    assert prepare(run, folder, "--patient-per-image")[0] == 0


@pytest.mark.parametrize("path", ["../outside.png", "/etc/passwd", "images/../../outside.png"])
def test_path_that_leaves_the_folder_is_refused(run: Run, tmp_path: Path, path: str) -> None:
    code, text = prepare(run, images(tmp_path / "images", rows=[f"{path},p0,Mass"]))
    assert code == 3 and "row 2" in text


def test_bom_and_semicolons_are_read(run: Run, tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    table = (folder / "metadata.csv").read_text().replace(",", ";")
    (folder / "metadata.csv").write_text(table, encoding="utf-8-sig")
    assert prepare(run, folder)[0] == 0


def test_unreadable_images_are_recorded_with_their_reason(run: Run, tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    whole = (folder / "images/1.png").read_bytes()
    (folder / "images/1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images/2.png").write_bytes(b"")
    (folder / "images/4.png").write_bytes(b"this is no image")
    bomb(folder / "images/5.png")
    assert (folder / "images/5.png").stat().st_size < 120_000
    assert prepare(run, folder)[0] == 0
    rejects = (tmp_path / "prepared/rejects.csv").read_text()
    for number in (1, 2, 4, 5):
        assert f"images/{number}.png,{number + 2}," in rejects


def test_nan_age_is_not_stated_and_noted(run: Run, tmp_path: Path) -> None:
    rows = [f"images/{n}.png,p{n},{'Mass' if n % 3 == 0 else 'No Finding'},{'nan' if n == 1 else 411 if n == 2 else 50}" for n in range(12)]
    folder = images(tmp_path / "images", header="file_name,patient_id,findings,age_years", rows=rows)
    assert prepare(run, folder)[0] == 0
    assert "411" in (tmp_path / "prepared/fingerprint.json").read_text()


def test_an_adaptation_without_a_base_is_wrong_usage(run: Run, tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    assert prepare(run, folder)[0] == 0
    code, text = run("train", "edm-32", "--data", tmp_path / "prepared", "--out", tmp_path / "r", "--adapt", "lora")
    assert code == 2 and "'lora' needs a trained model" in text and not (tmp_path / "r").exists()
    code, text = run("augment", folder, "--finding", "Mass", "--out", tmp_path / "a", "--adapt", "trunk", "--recipe", "edm-64")
    assert code == 2 and "'trunk' needs a trained model" in text and not (tmp_path / "a").exists()


def test_rare_or_one_sided_findings_are_refused_by_augment(run: Run, tmp_path: Path) -> None:
    rows = [f"images/{n}.png,p{n},{'Mass' if n < 3 else 'No Finding'}" for n in range(12)]
    folder = images(tmp_path / "few", rows=rows)
    code, text = run("augment", folder, "--finding", "Mass", "--out", tmp_path / "a")
    assert code == 3 and "Mass" in text and "5" in text
    everyone = images(tmp_path / "all", num=30, rows=[f"images/{n}.png,p{n},Mass" for n in range(30)])
    code, text = run("augment", everyone, "--finding", "Mass", "--out", tmp_path / "b")
    assert code == 3 and "lack 'Mass'" in text


def test_no_folder_and_wrong_usage(run: Run, tmp_path: Path) -> None:
    code, text = run("prepare", tmp_path / "nothing", "--out", tmp_path / "p")
    assert code == 3 and "nothing" in text
    assert run("prepare", images(tmp_path / "images"), "--split", "1,1,1", "--out", tmp_path / "p")[0] == 2
    assert run("train", "emd-64", "--data", tmp_path, "--out", tmp_path / "r")[0] in (2, 3)
    assert run("no-such-verb")[0] == 2


def test_a_refused_augmentation_leaves_nothing(run: Run, tmp_path: Path) -> None:
    folder = images(tmp_path / "images", rows=[f"images/{n}.png,p{n},{'Mass' if n < 3 else 'No Finding'}" for n in range(12)])
    assert run("augment", folder, "--finding", "Mass", "--out", tmp_path / "out")[0] == 3
    assert run("augment", folder, "--finding", "Efusion", "--out", tmp_path / "out")[0] == 3
    assert run("augment", tmp_path / "nowhere", "--finding", "Mass", "--out", tmp_path / "out")[0] == 3
    assert not (tmp_path / "out").exists()


# ---- generate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file conditioned on every part, with random weights."""
    tiny = untrained()
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    facts = {"recipe": "tiny", "support": Support.of(toy_images(8)).to_dict()}
    save_model(path, cast(Any, tiny.network), spec=tiny.spec, facts=facts)
    return path


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of a family conditioned on nothing and has no sampler."""
    objective = fresh_objective(smallest("kumar-gan"))
    path = tmp_path_factory.mktemp("gan") / "model.safetensors"
    save_model(path, objective.model, spec=as_model(objective.model).spec, facts={})
    return path


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["--sampler", "dpm-2m"], 2, "unknown sampler 'dpm-2m'; did you mean 'dpmpp-2m'?"),
    (["--schedule", "karas"], 2, "unknown schedule 'karas'; did you mean 'karras'?"),
    (["--steps", "0"], 2, "steps"),
    (["--steps", "1001"], 2, "steps"),
    (["--guidance", "nan"], 2, "guidance nan is not a finite number"),
    (["--guidance", "inf"], 2, "guidance inf is not a finite number"),
    (["--part-guidance", "lables=2"], 2, "unknown part 'lables'; did you mean 'labels'?"),
    (["--part-guidance", "labels=much"], 2, "--part-guidance much: write PART=W"),
    (["--part-guidance", "image=2"], 2, "guidance of 'image': the model is not conditioned on it; it is conditioned on attributes, labels"),
    (["--eta", "0.5"], 2, "sampler 'dpmpp-2m' has no eta"),
    (["--guidance-from", "5", "--guidance-to", "1"], 2, "guidance from noise level 5.0 to 1.0"),
    (["--site", "wst"], 2, "does not know the site 'wst'; did you mean 'west'?"),
    (["--view", "PAA"], 2, "unknown view 'PAA'"),
    (["--finding", "Masss"], 3, "unknown finding 'Masss'; did you mean 'Mass'?"),
    (["--finding", "Hernia"], 2, "not trained on 'Hernia'"),
    (["--finding", "Mass", "--without", "Mass"], 2, "'Mass' is asked for as present and as absent"),
    (["--side", "left"], 2, "side needs exactly one finding"),
    (["--finding", "Mass", "--finding", "Effusion", "--severity", "0.5"], 2, "severity needs exactly one finding"),
    (["--finding", "Mass", "--side", "up"], 2, "side 'up' of Mass is not the patient's left or right"),
    (["--finding", "Mass", "--size", "2"], 2, "size"),
    (["--finding", "Mass", "--at", "0.5"], 2, "--at 0.5: write x,y"),
    (["--finding", "Mass", "--at", "0.5,1.5"], 2, "y 1.5 of Mass is outside 0 to 1"),
    (["--finding", "Mass", "--box", "0.1,0.2,0.3"], 2, "--box 0.1,0.2,0.3: write [FINDING=]x,y,w,h"),
    (["--finding", "Mass", "--box", "0.8,0.2,0.3,0.3"], 2, "the box 0.8,0.2,0.3,0.3 of Mass leaves the image"),
    (["--box", "Effusion=0.1,0.1,0.3,0.3"], 2, "is conditioned on no masks of 'Effusion'"),
    (["--mask", "lungs={folder}/mask.png"], 2, "is conditioned on no masks of 'lungs'; did you mean 'lung'?"),
    (["--mask", "lung={folder}/nothing.png"], 3, "nothing.png: the mask is missing"),
    (["--mask", "lung={folder}/wide.png"], 3, "wide.png: the mask is 16 x 8 pixels, not square"),
    (["--mask", "lung={folder}/small.png"], 3, "small.png: the mask has 4 x 4 pixels, the model's images 8 x 8"),
    (["--mask", "lung={folder}/film.png"], 3, "grey values, as an image has and no mask"),
    (["--text", "kleiner Pleuraerguss links ohne Stauung"], 3, "are not known"),
    (["--text", "effusion " * 10_000], 3, "the description has 10,000 words"),
    (["--text", "mass NOT"], 3, "'NOT' stands without words behind it"),
    (["--plan", "{folder}/plan.csv", "--finding", "Mass"], 2, "the plan says what to make, and so does finding"),
    (["--plan", "{folder}/plan.csv"], 3, "plan.csv row 3: mask 'wide.png' is 16 x 8 pixels, not square"),
])
def test_what_cannot_be_generated_is_refused_before_anything_is_written(run: Run, model: Path, tmp_path: Path, arguments: list[str],
                                                                        code: int, message: str) -> None:
    shapes = {"mask": (16, 16), "wide": (8, 16), "small": (4, 4)}
    for name, shape in shapes.items():
        Image.fromarray(np.full(shape, 255, np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / "film.png")
    (tmp_path / "plan.csv").write_text("seed,lung_mask\n1,mask.png\n2,wide.png\n")
    filled = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    answer, text = run("generate", model, "--out", tmp_path / "made", "--num", 1, *filled)
    assert answer == code
    assert message in " ".join(text.split())
    assert not (tmp_path / "made").exists()


def test_a_model_without_conditions_says_so(run: Run, gan: Path, tmp_path: Path) -> None:
    for arguments, message in ((["--text", "small mass"], "is not conditioned on text, which a text asks for; it takes no conditions at "
                                                          "all"),
                               (["--sampler", "heun"], "a model of family 'kumar-gan' has no sampler, so 'sampler' cannot be chosen")):
        code, text = run("generate", gan, "--out", tmp_path / "made", *arguments)
        assert code == 2 and message in text
    assert not (tmp_path / "made").exists()


def test_every_option_of_generate_reaches_the_images(run: Run, model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(tmp_path / "mask.png")
    code, text = run(
        "generate", model, "--out", tmp_path / "made", "--num", 1, "--finding", "Mass", "--uncertain", "Effusion", "--view", "pa",
        "--sex", "F", "--age", 40, "--site", "west", "--text", "small mass", "--mask", f"LUNG={tmp_path}/mask.png",
        "--box", "0.5,0.25,0.5,0.5", "--side", "left", "--size", 0.5, "--severity", 0.4, "--at", "0.75,0.5", "--sampler", "ddim",
        "--steps", 2, "--schedule", "cosine", "--eta", 0.5, "--guidance", 2, "--part-guidance", "labels=3", "--guidance-from", 0.1,
        "--guidance-to", 20)
    assert code == 0, text
    with (tmp_path / "made/metadata.csv").open(newline="") as table:
        row = next(csv.DictReader(table))
    asked = json.loads(row["condition"])
    assert asked == {"labels": {"Mass": 1, "Effusion": 0.5}, "view": "PA", "sex": "F", "age_years": "40", "site": "west",
                     "text": "small mass", "masks": {"lung": "masks/lung/synthetic-000000.png"},
                     "lesions": [{"finding": "Mass", "side": "left", "size": 0.5, "severity": 0.4, "x": 0.75, "y": 0.5,
                                  "box": [0.5, 0.25, 0.5, 0.5], "mask": "masks/lesion/synthetic-000000-Mass.png"}]}
    settings = {"sampler": "ddim", "steps": "2", "schedule": "cosine", "eta": "0.5", "guidance": "2", "guidance_from": "0.1",
                "guidance_to": "20", "part_guidance": '{"labels": 3.0}'}
    assert {name: row[name] for name in settings} == settings
    assert "Effusion uncertain: never seen in training" in row["extrapolation"]


def refused_by_onednn() -> None:
    raise RuntimeError("could not create a primitive")  # all that oneDNN says where a layer's code or buffers find no memory


@pytest.mark.parametrize("take", [lambda: torch.empty(2**50, dtype=torch.uint8), lambda: np.empty(2**60, dtype=np.uint8),
                                  refused_by_onednn])
def test_too_little_memory_is_said_with_a_remedy_and_other_failures_stay_what_they_are(take: Callable[[], object]) -> None:
    with pytest.raises(OutOfMemoryError, match=r"not enough memory on cpu .*batches smaller"), started(device="cpu", threads=1):
        take()
    with pytest.raises(RuntimeError, match="size of tensor"), started(device="cpu", threads=1):
        torch.ones(2) + torch.ones(3)
    with pytest.raises(RuntimeError, match="descriptor"), started(device="cpu", threads=1):
        raise RuntimeError("could not create a primitive descriptor for the convolution forward propagation primitive")
