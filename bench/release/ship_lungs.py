"""Put the lung model into the zoo that ships with the package: weights, card, and its line in the table of judges.

  python bench/release/ship_lungs.py --run lungs --check check/check.json --guard guard/guard.json

`--run` is the folder of train_lungs.py, `--check` and `--guard` what check_lungs.py and check_guard.py measured of these weights. Run the
tests afterwards, and commit the folder `src/synthorax/zoo`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from judge_shipping import DATA, enter_judge, head_of, share, table

from synthorax.judges.lungs import load_lung_model
from synthorax.zoo import FOLDER

NAME = "lungs"
LARGEST_BYTES = 800_000
LIMITS = [
    "Frontal images only. On a lateral one its outlines mean nothing.",
    "A lung is the whole lung above its diaphragm, with the part behind the heart, as the human masks have it from which it learned. For "
    "aerated lung take `lungs & ~heart`.",
    "No human outline of a heart trained it: hearts come from drawn thoraces alone, and on patients they are less sure.",
    "In a white hemithorax the outline is a guess. Apices of small children are often drawn too high, over the clavicle.",
    "It outlines pixels at 128 px a side; borders are no finer than that.",
]


def main() -> None:
    """Write the weights, the card and the line in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--check", type=Path, required=True)
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder of the zoo; by default that of this checkout")
    args = parser.parse_args()
    weights = args.run / f"{NAME}.safetensors"
    model = load_lung_model(weights)
    check, guard = (json.loads(path.read_text(encoding="utf-8")) for path in (args.check, args.guard))
    if not check["model"] == guard["model"] == model.digest:
        raise SystemExit("ship_lungs.py: check and guard were measured with other weights")
    head = head_of(weights, into=args.into, largest_bytes=LARGEST_BYTES, name=NAME, image_size=model.image_size,
                   outlines=list(model.classes), data=DATA, parameters=sum(value.numel() for value in model.network.parameters()),
                   limits=LIMITS, digest=model.digest, outlines_measured=check["lines"], guard_measured=guard["lines"])
    enter_judge(head, card(head), into=args.into,
                purpose=f"Judge of anatomy: outlines the {', the '.join(head['outlines'])} of a frontal chest radiograph.")


def card(head: dict[str, Any]) -> list[str]:
    """What the card says of this judge alone."""
    training = head["training"]
    looked = ", ".join(f"{facts['lungs']} of {facts['looked_at']} from {name}" for name, facts in training["unlabelled"].items())
    return [
        f"Human lung masks of {training['outlined']} images ({training['patients']} "
        f"patients) and {training['drawn']} drawn thoraces trained the first round. The second also learned from outlines of the first on "
        f"images without masks, where it said the same of four variations of an image: {looked}. JSRT and other sets for research "
        "only, and outlines that stem from them, trained nothing and chose nothing.",
        "## Training", f"`python bench/release/train_lungs.py`, {training['updates'][0]} and {training['updates'][1]} updates of 12 images "
        "at 128 px on one processor core.",
        "## Measured", "Against human outlines that trained nothing (`bench/release/check_lungs.py`), mean with 95 % interval by a "
        "bootstrap over patients:",
        table(("set", "view", "structure", "measure", "images", "value"), [
            (one["set"], one["view"], one["structure"], one["measure"], one["n"], _value(one)) for one in head["outlines_measured"]]),
        "The anatomy guard, of which this is one judge and `plausible-chest` the other (`bench/release/check_guard.py`), part of images "
        "rejected with Wilson's 95 % interval:",
        table(("set", "view", "images", "n", "rejected"), [
            (one["set"], one["view"], one["what"], one["n"], share(one))
            for one in head["guard_measured"]]),
    ]


def _value(one: dict[str, Any]) -> str:
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" if "low" in one else ", ".join(map(str, one["value"]))


if __name__ == "__main__":
    main()
