"""Names that earlier versions wrote to disk or answered to, and what they are called now. A name that is no longer read is removed here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
SETTINGS = {
    "critic": "discriminator", "critic_channels": "discriminator_channels", "critic_first": "discriminator_warmup",
    "critic_layers": "discriminator_layers", "critic_norm": "discriminator_norm", "critic_rate": "discriminator_rate",
    "critic_repeats": "discriminator_repeats", "critic_repeats_most": "discriminator_repeats_most", "critic_width": "discriminator_width",
    "certainty": "ada_target", "codes": "latent_adversarial", "codes_width": "latent_discriminator_width", "code": "latent",
    "ema_halflife_films": "ema_halflife_images", "enlarging_steps": "super_resolution_steps", "grow_films": "growth_images",
    "guesser": "label_classifier", "image_noise": "conditioning_noise", "lessons": "distillation",
    "reading_weight": "text_statements_weight", "rise_films": "ada_images", "sight": "augmentation"}
"""keys of recipes, of `--set` and of sampling settings"""
FACTS = {"enlarging_steps": "super_resolution_steps", "films": "images", "films_seen": "images_seen", "image_noise": "conditioning_noise"}
"""keys of what a model file or a dataset folder says of itself, at any depth"""
FAMILIES = {"code-encoder": "inversion-encoder", "s4-gan": "kumar-gan", "s4-gmvae": "kumar-gmvae", "s4-vae": "kumar-vae"}
WEIGHTS = {"code": "latent", "code_critic": "latent_discriminator", "critic": "discriminator", "films": "images",
           "from_film": "from_image", "guesser": "label_classifier", "head_start": "warmup", "heard": "codes_in", "pace": "critic_schedule",
           "reader": "text_parser", "sight": "augmentation", "to_film": "to_image", "told": "known", "told_film": "coarse_in",
           "told_fine": "fine_in"}
"""parts of the names of weights, in model files and in checkpoints"""
COLUMNS = {"film": "image"}
"""of a table of readings"""
COMMANDS = {"loop": "refine-loop", "vet": "check-poisoning"}
OPTIONS = {"--budget-films": "--budget-images", "--enlarging-steps": "--super-resolution-steps", "--films-per-patient":
           "--images-per-patient", "--image-noise": "--conditioning-noise", "--patient-per-film": "--patient-per-image",
           "--train-films": "--train-images"}


def command_line(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a call with present names of command and options, and what to say of those that were given by former ones.

    >>> command_line(["vet", "made/", "--budget-films=9"])
    (['check-poisoning', 'made/', '--budget-images=9'], ["'vet' is now 'check-poisoning'", "'--budget-films' is now '--budget-images'"])
    """
    present, notes = [], []
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        now = OPTIONS.get(name) or (COMMANDS.get(name) if number == 0 and not equals else None)
        present.append(word if now is None else now + equals + value)
        if now is not None:
            notes.append(f"'{name}' is now '{now}'")
    return present, notes


def recipe_name(name: str) -> str:
    """The present name of a shipped recipe.

    >>> recipe_name("s4-gan"), recipe_name("edm-64")
    ('kumar-gan', 'edm-64')
    """
    return f"kumar-{name[3:]}" if name.startswith("s4-") else FAMILIES.get(name, name)


def with_present_keys(table: Mapping[str, T], former: Mapping[str, str]) -> dict[str, T]:
    """The table with present keys; where both names of a key are there, the present one counts."""
    return {**{former.get(key, key): value for key, value in table.items()}, **{key: value for key,
                                                                                value in table.items() if key not in former}}


def with_present_facts(facts: Any) -> Any:
    """What a model file or a dataset folder says of itself, with present keys, also in tables and lists in it."""
    if isinstance(facts, Mapping):
        present = with_present_keys({key: with_present_facts(value) for key, value in facts.items()}, FACTS)
        if present.get("family") in FAMILIES:
            present["family"] = FAMILIES[present["family"]]
        return present
    return [with_present_facts(value) for value in facts] if isinstance(facts, list) else facts


def with_present_weights(weights: Mapping[str, T]) -> dict[str, T]:
    """Weights by their present names, also those of a packed model's stages and of a checkpoint's players."""
    return {"".join(WEIGHTS.get(part, part) for part in re.split(r"([./])", name)): value for name, value in weights.items()}
