"""Models that ship: packed from runs, found by name, refused when they are not whole; their cards and their list."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import synthorax as sx
from synthorax import zoo
from synthorax.cli import app as cli
from synthorax.data.dataset import read_dataset
from synthorax.errors import InputError, UsageError
from synthorax.files import sha256, write_with_digest
from synthorax.protocols import Condition, ModelSpec, SampleSettings
from synthorax.run import FORMAT, Run, halve, save_weights, weights_digest
from synthorax.steps.models.card import model_head, read_card, training_of, write_card
from synthorax.steps.models.ship import MAX_BYTES, image_distance, ship
from synthorax.steps.models.trained_model import load_model, open_model
from synthorax.steps.planning.support import Support
from synthorax.steps.training.train_run import Beginning
from trainings import shape_of, toy_images, untrained

ROOT = Path(__file__).parents[2]
NAME = "cxr-8"
ORIGIN = {"name": "made up", "images": 24, "patients": 24, "licence": "free | open", "attribution": "nobody", "digest": "ab" * 32}


def run_in(folder: Path, **changes: Any) -> Run:
    """A finished run of a tiny model with random weights, as training leaves it."""
    model = cast(Any, untrained().network)
    facts: dict[str, Any] = {
        "recipe": "tiny-8", "recipe_digest": "cd" * 32, "data_digest": "ef" * 32, "data": {"images": 18, "patients": 17}, "steps": 3,
        "images_seen": 6, "sources": [ORIGIN], "sample": {"steps": 2}, "support": Support.of(toy_images(8)).to_dict(),
        "tool": "synthorax 0"} | changes
    run = Run(path=folder)
    head = model_head(model.spec, facts, name="tiny-8")
    folder.mkdir(parents=True)
    (folder / "card.md").write_text(write_card(head | {"training": [training_of(facts, hours=0.5, machine={"cores": 2})]}))
    (folder / "config.toml").write_text("")
    save_weights(run.weights, model.state_dict(), spec=model.spec, facts=facts)
    return run


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty zoo in place of the one that ships."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / zoo.TABLE_NAME).write_text(zoo.HEADER)
    (folder / zoo.JUDGES_NAME).write_text(zoo.JUDGES_HEADER)
    monkeypatch.setattr(zoo, "FOLDER", folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_in(tmp_path / "run")


def images_of(model: Any, *, num: int = 3) -> Tensor:
    images: Tensor = model.sample(None, list(range(num)), SampleSettings(steps=2))
    return images


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["synthorax", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


# ---- packing


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_run_is_packed_in_half_precision_and_computes_in_float32(run: Run, shelf: Path, precision: Any) -> None:
    model = ship(run, name=NAME, folder=shelf, precision=precision)
    assert zoo.shipped(shelf) == {NAME: model} and model.sha256 == sha256(model.weights) and model.format == FORMAT
    stored, trained = load_file(model.weights), load_file(run.weights)
    kinds = {value.dtype for value in stored.values() if value.ndim >= 2 and value.is_floating_point()}
    assert kinds == {getattr(torch, precision)}
    for key, value in trained.items():
        if value.ndim < 2:
            assert torch.equal(stored[key], value), "vectors keep every digit"
    loaded = load_model(NAME)
    assert {value.dtype for value in cast(Any, loaded).parameters()} == {torch.float32}
    told = read_card(shelf / f"{NAME}.md")["weights"]
    assert told["trained_sha256"] == weights_digest(run.weights) and told["stored_as"] == precision
    distance = image_distance(load_model(run.path), loaded, settings=SampleSettings(steps=2), num=8)
    assert 0 < distance.mean_grey_levels == pytest.approx(told["distance"]["mean_grey_levels"], abs=1e-3)
    assert not [path for path in shelf.iterdir() if path.name.startswith(".")], "nothing is left of the check"


def test_float32_ships_the_very_images(run: Run, shelf: Path) -> None:
    ship(run, name=NAME, folder=shelf, precision="float32")
    assert torch.equal(images_of(load_model(NAME)), images_of(load_model(run.path)))


@dataclass(frozen=True)
class Flat:
    """A model whose images have one grey value, brighter where a finding is asked for."""

    spec: ModelSpec
    value: float

    def sample(self, condition: Condition | None, seeds: Any, settings: SampleSettings | None = None) -> Tensor:
        assert condition is not None
        asked = condition.labels.nan_to_num().sum(1)
        return (self.value + asked / 127.5)[:, None, None, None].expand(len(seeds), 1, 4, 4)


def test_the_distance_counts_grey_levels() -> None:
    spec = ModelSpec(family="flat", image_size=4, findings=("Mass",), conditions=("labels",))
    first, second = Flat(spec, 0.0), Flat(spec, 10 / 127.5)
    distance = image_distance(first, second, settings=SampleSettings(), num=3)
    assert (distance.images, distance.mean_grey_levels, distance.worst_grey_levels) == (3, 10, 10)
    assert image_distance(first, first, settings=SampleSettings(), num=3).worst_grey_levels == 0


def test_numbers_beyond_half_precision_are_refused() -> None:
    weights = {"first": torch.full((2, 2), 1e5), "bias": torch.full((2,), 1e5)}
    with pytest.raises(InputError, match=r"'first' holds numbers that are not finite in torch\.float16; use bfloat16"):
        halve(weights, torch.float16, file=Path("a"))
    assert halve(weights, torch.bfloat16, file=Path("a"))["bias"].dtype is torch.float32


def test_images_that_move_too_far_are_refused(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthorax.steps.models.ship.FARTHEST_MEAN", 1e-9)
    with pytest.raises(InputError, match="stored as bfloat16, its images move by"):
        ship(run, name=NAME, folder=shelf, precision="bfloat16")
    assert {path.name for path in shelf.iterdir()} == {zoo.TABLE_NAME, zoo.JUDGES_NAME}


def test_more_bytes_than_ship_are_refused(run: Run, shelf: Path) -> None:
    with (shelf / "other.safetensors").open("wb") as file:
        file.truncate(MAX_BYTES)
    with pytest.raises(InputError, match="MB in all, and 27 MB is the limit"):
        ship(run, name=NAME, folder=shelf)
    assert not (shelf / f"{NAME}.md").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"sources": []}, "does not say on which images it was trained"),
    ({"sources": [ORIGIN | {"licence": "CC BY 4.0; not stated"}]}, "'made up', which states no terms or nobody to name"),
    ({"sources": [ORIGIN | {"attribution": ""}]}, "which states no terms or nobody to name"),
])
def test_data_without_terms_does_not_ship(changes: dict[str, Any], message: str, shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        ship(run_in(tmp_path / "r", **changes), name=NAME, folder=shelf)


def test_a_packed_model_tells_the_training_and_the_data_of_its_stages(run: Run, shelf: Path, tmp_path: Path) -> None:
    packed = run_in(tmp_path / "packed", sources=[], stages=[{}, {}])
    (packed.path / "card.md").write_text("# packed\n")
    with pytest.raises(InputError, match="was packed from other runs; name them as earlier ones"):
        ship(packed, name=NAME, folder=shelf)
    other = run_in(tmp_path / "other", sources=[ORIGIN, ORIGIN | {"name": "more"}], recipe="super")
    ship(packed, name=NAME, folder=shelf, earlier=[run, other])
    head = read_card(shelf / f"{NAME}.md")
    assert [entry["recipe"] for entry in head["training"]] == ["tiny-8", "super"]
    assert [source["name"] for source in head["data"]] == ["made up", "more"], "each set once"
    assert load_model(NAME).spec.image_size == 8
    assert [model["licences"] for model in sx.models()] == [["free | open"]]


def test_unfinished_runs_and_strange_names_are_refused(run: Run, shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model found"):
        ship(Run(path=tmp_path / "nothing"), name=NAME, folder=shelf)
    for name in ("", "../a", "a b", "a--b"):
        with pytest.raises(UsageError, match="is no name for a model"):
            ship(run, name=name, folder=shelf)


# ---- cards


def report_of(run: Run, path: Path, **changes: Any) -> Path:
    score = {"metric": "kid", "value": 0.25, "low": 0.2, "high": 0.3, "better": "lower", "n_real": 60, "n_synthetic": 90, "group": "all",
             "features": "space", "floor": 0.01}
    report = {"inputs": {"synthetic": {"model_digest": weights_digest(run.weights)}}, "judges": [{"name": "space", "digest": "12" * 32}],
              "dimensions": {"fidelity": {"status": "measured", "scores": [score, score | {"group": "Mass", "value": 9.0}]},
                             "controllability": {"status": "measured", "scores": [score | {"metric": "auroc", "group": "Mass"}]},
                             "privacy": {"status": "skipped", "reason": "why not"},
                             "benefit": {"status": "measured", "findings": [{"finding": "Mass", "verdict": "no evidence"}]}}} | changes
    path.write_text(json.dumps(report))
    return path


def test_the_card_has_everything_for_people_and_programs(run: Run, shelf: Path, tmp_path: Path) -> None:
    report = report_of(run, tmp_path / "report.json")
    before = run_in(tmp_path / "before")
    ship(run, name=NAME, folder=shelf, report=report, earlier=[before], limits=["It was never tested."])
    text, head = (shelf / f"{NAME}.md").read_text(), read_card(shelf / f"{NAME}.md")
    assert head["data"] == [ORIGIN] and head["licence"] == "Apache-2.0" and head["weights"]["bytes"] < MAX_BYTES
    assert [entry["hours"] for entry in head["training"]] == [0.5, 0.5] and head["training"][0]["machine"] == {"cores": 2}
    assert [(row["dimension"], row["metric"], row.get("group")) for row in head["metrics"]] == [
        ("fidelity", "kid", "all"), ("controllability", "auroc", "Mass"), ("benefit", "verdict", "Mass")]
    assert head["report"]["sha256"] == sha256(report)
    for words in ("free / open", "nobody", "0.25 [0.2, 0.3]", "no evidence", "It was never tested.", "Not a medical device", "30.0 minutes",
                  "Effusion", ORIGIN["digest"][:16], "Fewer than 20 training images showed"):
        assert str(words) in text, words


def test_a_card_without_measurements_says_so(run: Run) -> None:
    text = (run.path / "card.md").read_text()
    assert "Nothing yet: fidelity, diversity, privacy and benefit are unknown" in text and "18 images of 17 patients" in text
    assert read_card(run.path / "card.md")["findings"] == ["Effusion", "Mass"]


def test_a_report_on_another_model_is_refused(run: Run, shelf: Path, tmp_path: Path) -> None:
    other = report_of(run, tmp_path / "report.json", inputs={"synthetic": {"model_digest": "99" * 32}})
    with pytest.raises(InputError, match="is about images of the model 9999999999999999"):
        ship(run, name=NAME, folder=shelf, report=other)
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(InputError, match="is no report"):
        ship(run, name=NAME, folder=shelf, report=tmp_path / "none.json")


@pytest.mark.parametrize("text", ["", "# A model\n", "---\nname: cxr\n---\n", '---\n{"schema": "synthorax.card/9"}\n---\n'])
def test_what_is_no_card_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text(text)
    with pytest.raises(InputError, match="is no card of"):
        read_card(tmp_path / "card.md")


# ---- by name


def test_a_shipped_model_is_found_by_its_name(run: Run, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ship(run, name=NAME, folder=shelf)
    assert torch.equal(images_of(sx.load_model(NAME)), images_of(sx.load_model(model.weights)))
    opened = open_model(NAME)
    assert (opened.name, opened.digest, opened.spec.image_size, opened.settings.steps) == (NAME, model.sha256, 8, 2)
    assert opened.support is not None and opened.support.images == 24
    assert Beginning(base=opened, compressor=None).digests()["base_digest"] == model.sha256
    assert call(monkeypatch, "generate", NAME, "--out", tmp_path / "made", "--num", 1, "--image-size", 8, "--finding", "Mass") == 0
    (study,) = read_dataset(tmp_path / "made").studies
    assert (study.extra["model"], study.extra["model_digest"]) == (NAME, model.sha256)


def truncated(shelf: Path, model: zoo.Shipped) -> None:
    model.weights.write_bytes(model.weights.read_bytes()[:-100])


def altered(shelf: Path, model: zoo.Shipped) -> None:
    content = bytearray(model.weights.read_bytes())
    content[-1] ^= 1
    write_with_digest(model.weights, bytes(content))  # a digest beside it does not help: the table has its own


def newer(shelf: Path, model: zoo.Shipped) -> None:
    zoo.enter(replace(model, format=FORMAT + 1))


def gone(shelf: Path, model: zoo.Shipped) -> None:
    model.weights.unlink()


def no_table(shelf: Path, model: zoo.Shipped) -> None:
    (shelf / zoo.TABLE_NAME).unlink()


def broken_table(shelf: Path, model: zoo.Shipped) -> None:
    (shelf / zoo.TABLE_NAME).write_text("[cxr-8]\nfile = 3\nweights = 4\n")


@pytest.mark.parametrize(("damage", "message"), [
    (truncated, "cut off or altered.*install it again"), (altered, "cut off or altered.*install it again"),
    (newer, f"model format {FORMAT + 1}, and this version of synthorax reads up to {FORMAT}; update synthorax"),
    (gone, "missing from this installation.*install it again"), (no_table, "missing from this installation"),
    (broken_table, "is damaged: cxr-8.file.*install it again"),
])
def test_damage_is_named_with_its_remedy(damage: Callable[[Path, zoo.Shipped], None], message: str, run: Run, shelf: Path,
                                         monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    damage(shelf, ship(run, name=NAME, folder=shelf))
    with pytest.raises(InputError, match=message):
        load_model(NAME)
    assert call(monkeypatch, "generate", NAME, "--out", tmp_path / "made") == 3
    assert "Traceback" not in capsys.readouterr().err and not (tmp_path / "made").exists()


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The same model file with another description."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["synthorax"])
    change(facts)
    header["__metadata__"]["synthorax"] = json.dumps(facts)
    new = json.dumps(header).encode()
    write_with_digest(path, len(new).to_bytes(8, "little") + new + content[8 + length :])


@pytest.mark.parametrize(("change", "message"), [
    (lambda facts: facts.update(format=FORMAT + 1),
     f"has model format {FORMAT + 1}, and this version of synthorax reads up to {FORMAT}; update synthorax"),
    (lambda facts: facts["spec"].update(colours=3), "describes a model that this version of synthorax does not know"),
    (lambda facts: facts["spec"].update(family="cubist"), "family 'cubist', which this version of synthorax does not know"),
    (lambda facts: facts["spec"]["config"].update(hue=3), "does not fit the networks of this version"),
    (lambda facts: facts["spec"]["config"].update(channels=12), "does not fit the networks of this version.*synthorax 0"),
])
def test_files_of_other_versions_are_named_with_the_remedy(change: Any, message: str, run: Run) -> None:
    rewritten(run.weights, change)
    with pytest.raises(InputError, match=message):
        load_model(run.path)


def test_files_from_before_formats_were_counted_are_read(run: Run) -> None:
    rewritten(run.weights, lambda facts: facts.pop("format"))
    assert images_of(load_model(run.path)).shape == (3, 1, 8, 8)


def test_an_unknown_name_lists_what_ships(run: Run, shelf: Path) -> None:
    with pytest.raises(InputError, match="none in this version"):
        open_model("cxr-9")
    ship(run, name=NAME, folder=shelf)
    with pytest.raises(InputError, match=r"no model found; give a run folder, a model file or .* \(cxr-8\); did you mean 'cxr-8'"):
        load_model("cxr-9")


def test_a_name_that_is_also_a_folder_is_ambiguous(run: Run, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(run, name=NAME, folder=shelf)
    run.path.rename(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is a shipped model and a file or folder here"):
        load_model(NAME)
    assert load_model(tmp_path / NAME).spec.image_size == 8
    assert open_model(Run(path=Path(NAME))).name == "tiny-8", "a run is a run, whatever its folder is called"


@pytest.mark.parametrize(("asked", "message"), [
    (["--image-size", "256"], "cxr-8 makes images of 8 px, not of 256"),
    (["--finding", "Hernia"], "not trained on 'Hernia'; choose from: Effusion, Mass"),
    (["--site", "north"], "does not know the site 'north'; choose from: east, west"),
    (["--mask", "heart={folder}/m.png"], "is conditioned on no masks of 'heart'; choose from: Mass, lung"),
    (["--part-guidance", "image=2"], "is not conditioned on it; it is conditioned on attributes, labels, lesions, mask, text"),
])
def test_what_a_model_was_not_made_for_is_refused_with_what_it_has(asked: list[str], message: str, run: Run, shelf: Path, tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    ship(run, name=NAME, folder=shelf)
    arguments = [argument.replace("{folder}", str(tmp_path)) for argument in asked]
    assert call(monkeypatch, "generate", NAME, "--out", tmp_path / "made", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


# ---- the list


def test_the_list_has_shipped_models_and_runs_with_their_terms(run: Run, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    ship(run, name=NAME, folder=shelf)
    half = run_in(tmp_path / "runs/half")
    half.weights.unlink()
    broken = run_in(tmp_path / "runs/broken")
    broken.weights.write_bytes(b"nothing")
    whole = run_in(tmp_path / "runs/deep/whole")
    assert call(monkeypatch, "models", tmp_path / "runs", "--json") == 0
    listed = {Path(entry["model"]).name: entry for entry in json.loads(capsys.readouterr().out)["models"]}
    assert list(listed) == [NAME, "broken", "whole", "half"]
    for name, state in ((NAME, "shipped"), ("whole", "finished")):
        entry = listed[name]
        assert (entry["state"], entry["image_size"], entry["licences"]) == (state, 8, ["free | open"])
        assert entry["findings"] == ["Effusion", "Mass"]
        assert Path(entry["card"]).is_file() and "labels" in entry["conditions"]
    assert listed["half"]["state"] == "not finished" and "SHA-256" in listed["broken"]["state"]
    assert call(monkeypatch, "models") == 0
    assert NAME in capsys.readouterr().out
    assert call(monkeypatch, "models", tmp_path / "nowhere") == 3
    assert whole.finished


# ---- what really ships


def test_every_model_that_ships_is_whole_and_has_its_card() -> None:
    table, judges = zoo.shipped(), zoo.judges()
    everything = [*table.values(), *judges.values()]
    assert sum(model.weights.stat().st_size for model in everything) <= MAX_BYTES
    for name, model in table.items():
        assert zoo.read(name).path == model.weights
        head = read_card(model.folder / model.card)
        assert head["name"] == name and head["weights"]["sha256"] == model.sha256
        assert head.get("metrics") or (ROOT / head["study"]).is_file()
        network = load_model(name)
        assert images_of(network, num=1).shape == (1, *shape_of(network.spec)) and network.spec.image_size == head["image_size_px"]
    listed = {path.name for path in zoo.FOLDER.iterdir() if path.suffix in (".safetensors", ".md")}
    assert listed == {name for model in everything for name in (model.file, model.card)}, "and nothing else lies there"


def test_wheel_and_sdist_have_the_weights(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    shelf = copy / "src/synthorax/zoo"
    shelf.mkdir(parents=True)
    for name in ("src/synthorax/__init__.py", "src/synthorax/zoo/__init__.py", "src/synthorax/zoo/shipped.toml"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    model = ship(run, name=NAME, folder=shelf)
    program = "import setuptools.build_meta as b, sys; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "dist")], cwd=copy, check=True, capture_output=True)
    (wheel,), (archive,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    wanted = {"shipped.toml", model.file, f"{model.file}.sha256", model.card}
    with zipfile.ZipFile(wheel) as packed:
        assert wanted <= {Path(name).name for name in packed.namelist() if name.startswith("synthorax/zoo/")}
        assert packed.read(f"synthorax/zoo/{model.file}") == model.weights.read_bytes()
    with tarfile.open(archive) as packed_source:
        assert wanted <= {Path(name).name for name in packed_source.getnames() if "/src/synthorax/zoo/" in name}


def test_the_model_of_outlines_makes_no_images_and_generate_says_what_does(tmp_path: Path) -> None:
    assert load_model("layout").spec.family == "layout" and zoo.shipped()["layout"].weights.stat().st_size <= 800_000
    with pytest.raises(UsageError, match=r"layout draws outlines of findings and no images; insert .*synthorax insert HOSTS"):
        sx.generate("layout", out=tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_judge_ships_beside_the_generators_and_is_none_of_them(tmp_path: Path) -> None:
    assert "lungs" in zoo.judges() and not set(zoo.judges()) & set(zoo.shipped())
    listed = {row["model"]: row for row in sx.models()}
    assert listed["lungs"]["state"] == "shipped judge, makes no images"
    assert listed["lungs"]["outlines"] == ["right lung", "left lung", "heart"] and listed["lungs"]["licences"]
    judge = zoo.judges()["lungs"]
    assert judge.weights.stat().st_size <= 800_000 and sha256(judge.weights) == judge.sha256
    with pytest.raises((InputError, UsageError)):
        open_model("lungs")


def test_a_judge_that_was_altered_is_refused_and_its_line_can_be_written_anew(tmp_path: Path) -> None:
    judge = replace(zoo.judges()["lungs"], folder=tmp_path)
    content = zoo.judge_weights("lungs").read_bytes()
    judge.weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    zoo.enter(judge, judge=True)
    assert not (tmp_path / zoo.TABLE_NAME).exists()
    with pytest.raises(InputError, match="cut off or altered"):
        zoo.judge_weights("lungs", tmp_path)
    judge.weights.write_bytes(content)
    assert zoo.judge_weights("lungs", tmp_path) == judge.weights
