"""Put the judge of plausible chests into the zoo that ships with the package: weights, card, and its line in the table of judges.

  python bench/release/ship_plausible_chest.py --run chest --guard guard/guard.json

`--run` is the folder of train_plausible_chest.py, `--guard` what check_guard.py measured of these weights. Run the tests afterwards, and
commit the folder `src/synthorax/zoo`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from judge_shipping import DATA, enter_judge, head_of, share, table

from synthorax.judges.plausible_chest import IMAGE_SIZE, MODEL_NAME, load_chest_judge
from synthorax.zoo import FOLDER

LARGEST_BYTES = 300_000
LIMITS = [
    "It knows the kinds of failure that it was shown. Others it may pass.",
    "Its failures are edits of real images by a program. What a generator gets wrong may look different.",
    "It says nothing by itself: the anatomy guard holds its answer against a lab's own real images, which must not have trained it.",
    "Frontal images only. It screens, and never grades.",
]


def main() -> None:
    """Write the weights, the card and the line in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder of the zoo; by default that of this checkout")
    args = parser.parse_args()
    weights = args.run / f"{MODEL_NAME}.safetensors"
    judge = load_chest_judge(weights)
    guard = json.loads(args.guard.read_text(encoding="utf-8"))
    if guard["judge"] != judge.digest:
        raise SystemExit("ship_plausible_chest.py: the guard was measured with other weights")
    shown = json.loads((args.run / "facts.json").read_text(encoding="utf-8"))["images"]
    head = head_of(weights, into=args.into, largest_bytes=LARGEST_BYTES, name=MODEL_NAME, image_size=IMAGE_SIZE, outlines=[],
                   classes=list(judge.classes), data=[one for one in DATA if one["name"] in (*shown, "phantom")],
                   parameters=sum(value.numel() for value in judge.network.parameters()), limits=LIMITS, digest=judge.digest,
                   guard_measured=guard["lines"])
    enter_judge(head, card(head), into=args.into,
                purpose="Judge of anatomy: how much more a frontal radiograph looks like one with wrong anatomy than like a chest.")


def card(head: dict[str, Any]) -> list[str]:
    """What the card says of this judge alone."""
    training = head["training"]
    counts = ", ".join(f"{count} from {name}" for name, count in training["images"].items())
    return [
        f"Real images: {counts}; {training['drawn']} drawn thoraces. 30 % of the patients "
        f"were kept out. From every image: {', '.join(head['classes'][1:])}. A quarter of the intact images had a part replaced by itself, "
        "a little moved, so that seams say nothing. Lungs and hearts to be copied or erased were outlined by the judge `lungs`.",
        "## Training", f"`python bench/release/train_plausible_chest.py`, {training['updates']} updates of {training['batch_size']} images "
        f"at {head['image_size']} px on one processor core.",
        "## Measured", "The anatomy guard with this judge (`bench/release/check_guard.py`), part of images rejected with Wilson's 95 % "
        "interval, and without it, by outlines alone:",
        table(("set", "view", "images", "n", "rejected", "outlines alone"), [
            (one["set"], one["view"], one["what"], one["n"], share(one),
             f"{one['outlines_alone']:.3f}") for one in head["guard_measured"]]),
    ]


if __name__ == "__main__":
    main()
