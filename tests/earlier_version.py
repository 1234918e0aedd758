"""Files as the version before 0.1.0 wrote them, made of files that this version wrote: only names differ, numbers do not."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import safe_open
from safetensors.torch import load_file, save

from synthorax.files import write_with_digest
from synthorax.folders import CLAIM_NAME
from synthorax.run import METADATA_KEY

SETTINGS = {
    "ada_images": "rise_films", "ada_target": "certainty", "augmentation": "sight", "conditioning_noise": "image_noise",
    "discriminator_channels": "critic_channels", "discriminator_layers": "critic_layers", "discriminator_norm": "critic_norm",
    "discriminator_rate": "critic_rate", "discriminator_repeats": "critic_repeats",
    "discriminator_repeats_most": "critic_repeats_most", "discriminator_warmup": "critic_first", "discriminator_width": "critic_width",
    "distillation": "lessons", "ema_halflife_images": "ema_halflife_films", "growth_images": "grow_films",
    "label_classifier": "guesser", "latent_adversarial": "codes", "latent_discriminator_width": "codes_width",
    "super_resolution_steps": "enlarging_steps", "text_statements_weight": "reading_weight"}
FAMILIES = {"inversion-encoder": "code-encoder", "kumar-gan": "s4-gan", "kumar-gmvae": "s4-gmvae", "kumar-vae": "s4-vae"}
WEIGHTS = {
    "augmentation": "sight", "coarse_in": "told_film", "codes_in": "heard", "critic_schedule": "pace", "discriminator": "critic",
    "fine_in": "told_fine", "from_image": "from_film", "images": "films", "known": "told", "label_classifier": "guesser", "latent": "code",
    "latent_discriminator": "code_critic", "text_parser": "reader", "to_image": "to_film", "warmup": "head_start"}
"""parts of the names of weights"""
FACTS = {"data": {"images": "films"}, "sources": {"images": "films"}, "support": {"images": "films"}, "sample": SETTINGS,
         "settings": {"images_per_patient": "films_per_patient"}}
"""table in what a file says of itself -> keys in it"""


def with_former_keys(table: Any, former: Mapping[str, str]) -> Any:
    """A table, and tables and lists in it, with former keys."""
    if isinstance(table, Mapping):
        return {former.get(key, key): with_former_keys(value, former) for key, value in table.items()}
    return [with_former_keys(value, former) for value in table] if isinstance(table, list) else table


def former_toml(text: str) -> str:
    """A recipe."""
    tables = with_former_keys(tomllib.loads(text), SETTINGS)
    family = FAMILIES.get(tables["family"], tables["family"])
    return tomli_w.dumps(tables | {"family": family, "name": re.sub("^kumar-", "s4-", tables["name"])})


def former_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a model says of itself."""
    told = {key: with_former_keys(value, FACTS.get(key, {})) for key, value in facts.items()}
    told |= {"films_seen": told.pop("images_seen")} if "images_seen" in told else {}
    told |= {"settings": former_toml(facts["settings"])} if "settings" in facts else {}
    told |= {"stages": [former_facts(stage) for stage in facts["stages"]]} if "stages" in facts else {}
    if "format" in facts:
        told["format"] = 1
    if "spec" in facts:
        spec = facts["spec"]
        told["spec"] = spec | {"family": FAMILIES.get(spec["family"], spec["family"]), "config": with_former_keys(spec["config"], SETTINGS)}
    return told


def make_former_weights(path: Path) -> None:
    """Rewrite a model file or a checkpoint."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {"".join(WEIGHTS.get(part, part) for part in re.split(r"([./])", name)): value for name, value in load_file(path).items()}
    if METADATA_KEY in metadata:
        metadata[METADATA_KEY] = json.dumps(former_facts(json.loads(metadata[METADATA_KEY])), sort_keys=True)
    else:
        metadata["progress"] = json.dumps(with_former_keys(json.loads(metadata["progress"]), {"images": "films"}))
    write_with_digest(path, save(tensors, metadata))


def make_former_claim(folder: Path, *, keys: Mapping[str, str] = SETTINGS) -> None:
    """Rewrite the claim of a folder, with former `keys` of its inputs."""
    claim = json.loads((folder / CLAIM_NAME).read_text())
    del claim["format"]
    write(folder / CLAIM_NAME, claim | {"inputs": with_former_keys(claim["inputs"], keys)})


def make_former_run(run: Path) -> None:
    """Rewrite a run folder, finished or not."""
    for path in (*run.glob("*.safetensors"), *run.glob("checkpoints/*.safetensors")):
        make_former_weights(path)
    (run / "config.toml").write_text(former_toml((run / "config.toml").read_text()))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [with_former_keys(line, {"images": "films", "images_per_second": "films_per_second"}) for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_former_claim(run)


def make_former_prepared(folder: Path) -> None:
    """Rewrite a prepared folder."""
    facts = json.loads((folder / "prepared.json").read_text())
    facts = {key: with_former_keys(value, FACTS.get(key, {})) for key, value in facts.items()} | {"num_films": facts.pop("num_images")}
    del facts["num_images"]
    digest = hashlib.sha256(json.dumps(facts["settings"], sort_keys=True).encode()).hexdigest()
    write(folder / "prepared.json", facts | {"settings_digest": digest})
    fingerprint = json.loads((folder / "fingerprint.json").read_text())
    write(folder / "fingerprint.json", with_former_keys(fingerprint, {"images": "films", "num_images": "num_films"}))
    make_former_claim(folder, keys=FACTS["settings"])


def make_former_generation(folder: Path) -> None:
    """Rewrite a folder of generated images."""
    facts = json.loads((folder / "dataset.json").read_text())
    facts["settings"] = with_former_keys(facts["settings"], SETTINGS)
    facts["trained_on"] = with_former_keys(facts["trained_on"], {"images": "films"})
    write(folder / "dataset.json", facts)
    table = (folder / "metadata.csv").read_text()
    header, _, rows = table.partition("\n")
    (folder / "metadata.csv").write_text(",".join(SETTINGS.get(name, name) for name in header.split(",")) + "\n" + rows)
    make_former_claim(folder)


def write(path: Path, value: Any) -> None:
    """Indented JSON."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
