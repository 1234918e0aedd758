"""Cascades: stages that chain are packed into one file, which is a model like any other; stages that do not are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import synthorax as sx
from synthorax.cli import app as cli
from synthorax.data.dataset import read_dataset
from synthorax.data.pixels import write_png
from synthorax.diffusion.guidance import autoguided
from synthorax.errors import InputError, UsageError
from synthorax.families.denoising.cascade import CascadeModel, _translated
from synthorax.families.denoising.model import DiffusionModel
from synthorax.protocols import ATTRIBUTES, Condition, SampleSettings, as_model
from synthorax.rng import derive
from synthorax.run import read_spec, save_model, weights_digest
from synthorax.steps.models.recipe import Recipe, build_objective, load_recipe
from synthorax.steps.models.trained_model import open_model
from synthorax.steps.training.base_model import check_base, recipe_of_base
from trainings import FINDINGS, MASKS, SITES, randomised, smallest, super_resolution

OTHER_ORDER = tuple(reversed(FINDINGS)), tuple(reversed(SITES)), tuple(reversed(MASKS))
PLAIN = SampleSettings(steps=3, guidance=1.5)


def stage(folder: Path, recipe: Recipe, *, findings: Sequence[str] = FINDINGS, sites: Sequence[str] = SITES, masks: Sequence[str] = MASKS,
          seed: int = 0) -> Path:
    """A run of random weights."""
    model = build_objective(recipe, findings=findings, sites=sites, masks=masks).model
    randomised(model, seed=seed)
    facts = {"recipe": recipe.name, "settings": recipe.to_toml(), "steps": 7, "data_digest": "ab" * 32,
             "sample": {"steps": recipe.sample.steps, "guidance": recipe.sample.guidance},
             "support": {"images": 20, "labels": {"Mass": {"present": 9, "absent": 9, "uncertain": 0}}, "ranges": {}}}
    save_model(folder / "model.safetensors", model, spec=as_model(model).spec, facts=facts)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A base of 8 px, and stages to 16 and to 32 px whose findings, sites and masks come in another order."""
    findings, sites, masks = OTHER_ORDER
    larger = super_resolution("model.image_size=32", 'model.parts=["labels", "mask", "image"]', "sample.steps=2")
    return [stage(tmp_path / "base", smallest("diffusion"), seed=1),
            stage(tmp_path / "two", super_resolution("sample.steps=3"), findings=findings, sites=sites, seed=2),
            stage(tmp_path / "three", larger, findings=findings, masks=masks, seed=3)]


def requests(*, size: int = 32) -> Condition:
    mask = torch.full((2, len(MASKS), size, size), math.nan)
    mask[0, 1] = 0.0
    mask[0, 1, : size // 2] = 1.0
    attributes = torch.tensor([[0, 1, 0, 1, 0.7, 1, 0]] * 2)
    return Condition(labels=torch.tensor([[1.0, 0.0], [math.nan, 1.0]]), attributes=attributes, mask=mask)


def test_a_cascade_is_its_stages_one_after_the_other(runs: list[Path], tmp_path: Path) -> None:
    """Each with its own settings and noise, findings and masks by name, and the image before it as its image."""
    run = sx.pack(runs, out=tmp_path / "joint", precision="fp32")
    model = sx.load_model(run.path)
    images = model.sample(requests(), [4, 5], replace(PLAIN, conditioning_noise=0.05))
    assert images.shape == (2, 1, 32, 32)

    base, two, three = (sx.load_model(path) for path in runs)
    by_hand = base.sample(requests(size=8), [4, 5], PLAIN)  # the mask of 32 px has no pixel that 8 px cannot show
    turned = requests()
    turned = replace(turned, labels=turned.labels.flip(1), mask=turned.mask.flip(1),  # type: ignore[union-attr]
                     attributes=torch.cat([turned.attributes[:, : len(ATTRIBUTES)], turned.attributes[:, len(ATTRIBUTES):].flip(1)], dim=1))
    for number, (upsampled, steps) in enumerate(((two, 3), (three, 2)), start=1):
        by_hand = upsampled.sample(replace(turned, image=by_hand), [derive(seed, "stage", number) for seed in (4, 5)],
                                 SampleSettings(steps=steps, guidance=1.0, conditioning_noise=0.05))
    torch.testing.assert_close(images, by_hand, atol=1e-6, rtol=0)
    for other in (replace(PLAIN, conditioning_noise=0.2), replace(PLAIN, conditioning_noise=0.05, super_resolution_steps=5)):
        assert not torch.equal(model.sample(requests(), [4, 5], other), images)
    assert model.sample(None, [1]).shape == (1, 1, 32, 32)


def test_a_mask_at_full_size_is_averaged_for_the_small_stage(runs: list[Path], tmp_path: Path) -> None:
    model = sx.load_model(sx.pack(runs[:2], out=tmp_path / "joint").path)
    fine = torch.rand(2, len(MASKS), 16, 16, generator=torch.Generator().manual_seed(0))
    small = model.sample(replace(requests(), mask=F.avg_pool2d(fine, 2)), [1, 2], PLAIN)
    torch.testing.assert_close(model.sample(replace(requests(), mask=fine), [1, 2], PLAIN), small, atol=1e-4, rtol=0)
    assert not torch.allclose(model.sample(replace(requests(), mask=fine.flip(2)), [1, 2], PLAIN), small, atol=1e-2)


def test_a_packed_model_says_what_it_is_made_of(runs: list[Path], tmp_path: Path) -> None:
    run = sx.pack(runs, out=tmp_path / "joint")
    spec, facts = read_spec(run.weights)
    assert (spec.family, spec.image_size) == ("cascade", 32)
    base, _ = read_spec(runs[0] / "model.safetensors")
    assert (spec.conditions, spec.findings, spec.sites, spec.masks) == (base.conditions, FINDINGS, SITES, MASKS)
    assert [own["digest"] for own in facts["stages"]] == [weights_digest(path / "model.safetensors") for path in runs]
    assert [(own["image_size"], own["recipe"]) for own in facts["stages"]] == [(8, "controlled-64"), (16, "super-256"), (32, "super-256")]
    assert facts["sample"]["guidance"] == 1.5 and facts["support"]["images"] == 20
    assert all(own["digest"][:16] in (run.path / "card.md").read_text() for own in facts["stages"])
    before = run.weights.read_bytes()
    assert sx.pack(runs, out=run.path).weights.read_bytes() == before, "the same call leaves the same file"
    cases = ((runs[:2], run.path, "other stages"), (runs, runs[0], "choose another --out"), (runs, tmp_path, "not empty"))
    for other, out, message in cases:
        with pytest.raises(InputError, match=message):
            sx.pack(other, out=out)


def test_bf16_halves_the_file_and_hardly_changes_an_image(runs: list[Path], tmp_path: Path) -> None:
    half, whole = sx.pack(runs, out=tmp_path / "half"), sx.pack(runs, out=tmp_path / "whole", precision="fp32")
    stored = load_file(half.weights)
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} == {torch.bfloat16}
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim == 1} == {torch.float32}
    models = [sx.load_model(run.path) for run in (half, whole)]
    assert all(weight.dtype == torch.float32 for weight in models[0].parameters())  # type: ignore[attr-defined]
    for weight, kept in zip(models[0].parameters(), models[1].parameters(), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(weight, kept, rtol=2**-8, atol=0)
    with pytest.raises(UsageError, match="did you mean 'fp32'"):
        sx.pack(runs, out=tmp_path / "other", precision="fp23")  # type: ignore[arg-type]


def test_two_stages_of_six_million_weights_fit_25_megabytes(tmp_path: Path) -> None:
    base = load_recipe("edm-64", overrides=["model.channels=24", "model.multipliers=[1, 2, 4, 6]"])
    run = sx.pack([stage(tmp_path / "base", base, findings=FINDINGS, sites=(), masks=()),
                   stage(tmp_path / "super", load_recipe("super-256"), findings=FINDINGS, sites=(), masks=())], out=tmp_path / "joint")
    counts = [sum(weight.numel() for weight in part.parameters()) for part in sx.load_model(run.path).stages]  # type: ignore[attr-defined]
    assert counts[1] < 6.1e6 and run.weights.stat().st_size < 25e6 * sum(counts) / 12e6


# ---- refused


def test_stages_that_do_not_chain_are_refused(runs: list[Path], tmp_path: Path) -> None:
    base, two, three = runs
    plain = stage(tmp_path / "plain", smallest("diffusion", "model.image_size=16"))
    gan = stage(tmp_path / "gan", smallest("kumar-gan"))
    for chain, message in (([base], "at least one"), ([base, three], "images of 16 px.*images of 8 px"), ([two, three], "begin with"),
                           ([base, plain], "is not conditioned on the part image"), ([gan, two], "kumar-gan"), ([base, gan], "kumar-gan")):
        with pytest.raises(UsageError, match=message):
            sx.pack(chain, out=tmp_path / "joint")
    with pytest.raises(InputError, match="no model found"):
        sx.pack([base, tmp_path / "nothing"], out=tmp_path / "joint")
    assert not (tmp_path / "joint").exists()


# ---- made of other names, and of other packed models


def test_a_stage_does_not_get_findings_it_does_not_know_and_the_card_says_so(runs: list[Path], tmp_path: Path) -> None:
    parts = 'model.parts=["attributes", "labels", "mask", "image"]'
    other = stage(tmp_path / "other", super_resolution(parts), findings=("Hernia", "Effusion"), sites=("north", "east"),
                  masks=("heart", "lung"))
    run = sx.pack([runs[0], other], out=tmp_path / "joint")
    assert "is not conditioned on Mass, west, Mass:" in (run.path / "card.md").read_text()
    model, small = sx.load_model(run.path), torch.zeros(2, 1, 8, 8)
    second = model.stages[1]  # type: ignore[attr-defined]
    told = _translated(requests(size=16), sx.load_model(runs[0]).spec, second.spec)
    assert told.labels[0].isnan().tolist() == [True, False] and told.labels[0, 1] == 1.0
    assert told.attributes[0, len(ATTRIBUTES):].isnan().tolist() == [True, False]
    assert told.mask is not None and told.mask[:, 0].isnan().all()
    assert second.sample(replace(told, image=small), [1, 2]).isfinite().all()
    unconditional = stage(tmp_path / "unconditional", super_resolution('model.parts=["image"]'), findings=("Hernia",), sites=("north",),
                          masks=("heart",))
    assert "px is not conditioned on" not in (sx.pack([runs[0], unconditional], out=tmp_path / "quiet").path / "card.md").read_text()


def test_a_packed_model_is_a_base_and_its_first_stage_can_be_exchanged(runs: list[Path], tmp_path: Path) -> None:
    joint = sx.pack(runs, out=tmp_path / "joint", precision="fp32")
    recipe = recipe_of_base(open_model(joint), train=load_recipe("edm-64").train)
    assert (recipe.name, recipe.model.image_size) == ("controlled-64", 8)
    check_base(recipe, open_model(joint))
    base, alone = open_model(joint).stages[0].build(), open_model(runs[0]).build()
    assert all(torch.equal(base.state_dict()[key], tensor) for key, tensor in alone.state_dict().items())
    trained = stage(tmp_path / "trained", smallest("diffusion"), findings=("Effusion", "Hernia"), seed=9)
    exchanged, by_hand = (sx.pack([trained, *rest], out=tmp_path / name, precision="fp32")
                          for name, rest in (("exchanged", [joint.path]), ("by-hand", runs[1:])))
    first, second = (read_spec(run.weights)[1]["stages"] for run in (exchanged, by_hand))
    assert first == second and first[0]["digest"] == weights_digest(trained / "model.safetensors")
    ours, theirs = load_file(exchanged.weights), load_file(by_hand.weights)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    again = sx.pack([sx.pack(runs[:2], out=tmp_path / "two-of-three", precision="fp32").path, runs[2]], out=tmp_path / "all",
                    precision="fp32")
    assert [part.digest for part in open_model(again).stages] == [weights_digest(path / "model.safetensors") for path in runs]


# ---- through the verbs


def test_a_cascade_generates_like_any_other_model(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: object) -> dict[str, object]:
        monkeypatch.setattr("sys.argv", ["synthorax", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code in (0, None)
        told: dict[str, object] = json.loads(capsys.readouterr().out)
        return told

    joint = tmp_path / "joint"
    packed = command("pack", *runs, "--out", joint)
    outline = torch.zeros(32, 32, dtype=torch.uint8)
    outline[:16, :16] = 255
    write_png(tmp_path / "mass.png", outline.numpy())
    command("generate", joint, "--num", 2, "--finding", "Mass", "--mask", tmp_path / "mass.png", "--steps", 2, "--super-resolution-steps",
            1,
            "--conditioning-noise", 0.1, "--device", "cpu", "--threads", 1, "--out", tmp_path / "made")
    made = read_dataset(tmp_path / "made")
    assert made.facts["model_digest"] == packed["model_digest"] == made.studies[0].extra["model_digest"]
    assert made.studies[0].extra["model"] == "joint"
    assert (made.studies[0].extra["conditioning_noise"], made.studies[0].extra["super_resolution_steps"]) == ("0.1", "1")
    again = sx.generate(joint, sx.Request(num=2, finding=["Mass"], mask=[("", tmp_path / "mass.png")]), out=tmp_path / "again",
                        settings={"steps": 2, "super_resolution_steps": 1, "conditioning_noise": 0.1}, device="cpu", threads=1)
    for one, other in zip(made.studies, again.studies, strict=True):
        assert (made.path / one.file_name).read_bytes() == (again.path / other.file_name).read_bytes()
    with pytest.raises(UsageError, match="synthorax pack"):
        sx.generate(runs[1], out=tmp_path / "alone", device="cpu", threads=1)
    assert not (tmp_path / "alone").exists()


def test_stages_are_diffusion_models_with_their_own_weights(runs: list[Path], tmp_path: Path) -> None:
    model = sx.load_model(sx.pack(runs, out=tmp_path / "joint", precision="fp32").path)
    assert isinstance(model, CascadeModel)
    for inside, path in zip(model.stages, runs, strict=True):
        alone = sx.load_model(path)
        assert isinstance(inside, DiffusionModel) and isinstance(alone, DiffusionModel)
        assert all(torch.equal(inside.state_dict()[key], tensor) for key, tensor in alone.state_dict().items())


def test_a_guide_leads_the_first_stage_away_from_what_it_would_do(runs: list[Path], tmp_path: Path) -> None:
    """By the weight that was packed, with its names matched, and not at all at weight 1; a packed model brings its guide along."""
    findings, sites, masks = OTHER_ORDER
    weak = stage(tmp_path / "weak", smallest("diffusion"), findings=findings, sites=sites, masks=masks, seed=9)
    alone, guided = (sx.pack(runs[:2], out=tmp_path / name, guide=guide, sample={"steps": 3}, precision="fp32")
                     for name, guide in (("alone", None), ("guided", weak)))
    model = sx.load_model(guided.path)
    usual = open_model(guided).settings
    assert (usual.autoguidance, usual.guidance, usual.steps) == (2.0, 1.0, 3)
    plain = replace(usual, autoguidance=1.0)
    of_run = sx.load_model(alone.path).sample(requests(size=16), [4, 5], plain)
    torch.testing.assert_close(model.sample(requests(size=16), [4, 5], plain), of_run)

    base, two, other = (sx.load_model(path) for path in (*runs[:2], weak))
    turned = requests(size=8)
    turned = replace(turned, labels=turned.labels.flip(1), mask=turned.mask.flip(1),  # type: ignore[union-attr]
                     attributes=torch.cat([turned.attributes[:, : len(ATTRIBUTES)], turned.attributes[:, len(ATTRIBUTES):].flip(1)], dim=1))
    weaker = other.guided(turned, 2, plain)[0]  # type: ignore[attr-defined]
    small = base.sample(requests(size=8), [4, 5], plain, change=lambda own: autoguided(own, weaker, weight=2.0))  # type: ignore[call-arg]
    large = two.sample(replace(turned, image=small), [derive(seed, "stage", 1) for seed in (4, 5)], SampleSettings(steps=3, guidance=1.0))
    made = model.sample(requests(size=8), [4, 5], usual)
    torch.testing.assert_close(made, large, atol=1e-5, rtol=0)
    assert not torch.allclose(made, model.sample(requests(size=8), [4, 5], plain), atol=1e-3)

    again = sx.pack([guided.path, runs[2]], out=tmp_path / "again", precision="fp32")
    assert open_model(again).settings == usual and open_model(again).guide is not None
    assert open_model(sx.pack([runs[0], guided.path], out=tmp_path / "mine")).guide is None, "a guide belongs to its first stage"
    with pytest.raises(UsageError, match="both must denoise the same latents"):
        sx.pack(runs[:2], out=tmp_path / "wrong", guide=stage(tmp_path / "large", smallest("diffusion", "model.image_size=16")))
    with pytest.raises(InputError, match="did you mean 'autoguidance'"):
        sx.pack(runs[:2], out=tmp_path / "wrong", guide=weak, sample={"autoguidence": 2})
    with pytest.raises(UsageError, match="weaker model"):
        sx.generate(alone.path, out=tmp_path / "images", settings={"autoguidance": 2.0})
