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

from ship_lungs import DATA, _table

from synthorax import __version__
from synthorax.files import sha256, write_atomic
from synthorax.judges.plausible_chest import IMAGE_SIZE, MODEL_NAME, load_chest_judge
from synthorax.run import FORMAT
from synthorax.steps.models.card import FENCE, SCHEMA, licences_of
from synthorax.zoo import FOLDER, Shipped, enter

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
    if weights.stat().st_size > LARGEST_BYTES:
        raise SystemExit(f"ship_plausible_chest.py: {weights.stat().st_size} bytes, and {LARGEST_BYTES} are the limit")
    out = args.into / weights.name
    for name in (weights.name, weights.name + ".sha256"):
        write_atomic(args.into / name, (args.run / name).read_bytes())
    training = json.loads((args.run / "facts.json").read_text(encoding="utf-8"))
    head = {"schema": SCHEMA, "name": MODEL_NAME, "kind": "judge", "image_size": IMAGE_SIZE, "outlines": [], "classes": list(judge.classes),
            "data": [one for one in DATA if one["name"] in (*training["images"], "phantom")],
            "parameters": sum(value.numel() for value in judge.network.parameters()), "training": training, "limits": LIMITS,
            "licence": "Apache-2.0", "weights": {"file": out.name, "bytes": out.stat().st_size, "sha256": sha256(out)},
            "digest": judge.digest, "guard_measured": guard["lines"], "tool": f"synthorax {__version__}"}
    write_atomic(args.into / f"{MODEL_NAME}.md", card(head))
    enter(Shipped(name=MODEL_NAME, file=out.name, sha256=sha256(out), format=FORMAT, card=f"{MODEL_NAME}.md", folder=args.into), judge=True)
    print(json.dumps(head["weights"]))


def card(head: dict[str, Any]) -> str:
    """The card: its head as JSON, which `steps.models.card.read_card` reads, and the same in words."""
    training = head["training"]
    sources = "\n".join(f"| {one['name']} | {one['licence']} | {one['attribution']} |" for one in head["data"])
    counts = ", ".join(f"{count} from {name}" for name, count in training["images"].items())
    parts = [
        f"# {head['name']}",
        "Judge of anatomy: how much more a frontal radiograph looks like one with wrong anatomy than like a chest. It makes no images. For "
        "research; not a medical device.",
        f"- Weights: `{head['weights']['file']}`, {head['weights']['bytes']:,} bytes, {head['parameters']:,} parameters, float16\n"
        f"- SHA-256: `{head['weights']['sha256']}`\n- Licence: {head['licence']}",
        "## Limits", "\n".join(f"- {limit}" for limit in head["limits"]),
        "## Data", "| source | terms | to be named |\n|---|---|---|\n" + sources,
        f"Terms: {'; '.join(licences_of(head['data']))}. Real images: {counts}; {training['drawn']} drawn thoraces. 30 % of the patients "
        f"were kept out. From every image: {', '.join(head['classes'][1:])}. A quarter of the intact images had a part replaced by itself, "
        "a little moved, so that seams say nothing. Lungs and hearts to be copied or erased were outlined by the judge `lungs`.",
        "## Training", f"`python bench/release/train_plausible_chest.py`, {training['updates']} updates of {training['batch_size']} images "
        f"at {head['image_size']} px on one processor core.",
        "## Measured", "The anatomy guard with this judge (`bench/release/check_guard.py`), part of images rejected with Wilson's 95 % "
        "interval, and without it, by outlines alone:",
        _table(("set", "view", "images", "n", "rejected", "outlines alone"), [
            (one["set"], one["view"], one["what"], one["n"], f"{one['share']:.3f} [{one['low']:.3f}, {one['high']:.3f}]",
             f"{one['outlines_alone']:.3f}") for one in head["guard_measured"]]),
        f"Made with {head['tool']}.",
    ]
    return f"{FENCE}{json.dumps(head, indent=1, ensure_ascii=False)}\n{FENCE}\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
