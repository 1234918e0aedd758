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

from synthorax import __version__
from synthorax.files import sha256, write_atomic
from synthorax.judges.lungs import load_lung_model
from synthorax.run import FORMAT
from synthorax.steps.models.card import FENCE, SCHEMA, licences_of
from synthorax.zoo import FOLDER, Shipped, enter

NAME = "lungs"
LARGEST_BYTES = 800_000
DATA = [
    {"name": "hannover", "licence": "CC BY 3.0", "attribution":
     "H. B. Winther et al., COVID-19 Image Repository, Hannover Medical School 2020, https://doi.org/10.25835/0090041"},
    {"name": "lung masks of hannover", "licence": "CC BY 4.0", "attribution":
     "V7 Labs, COVID-19 X-ray dataset, https://github.com/v7labs/covid-19-xray-dataset"},
    {"name": "nih", "licence": "unrestricted use with attribution", "attribution":
     "NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC; X. Wang et al., ChestX-ray8, CVPR 2017"},
    {"name": "kermany", "licence": "CC BY 4.0", "attribution":
     "D. Kermany, K. Zhang, M. Goldbaum, Labeled Optical Coherence Tomography and Chest X-Ray Images, Mendeley Data 2018, "
     "https://doi.org/10.17632/rscbjbr9sj"},
    {"name": "phantom", "licence": "Apache-2.0", "attribution": "the authors of Synthorax"},
]
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
    weights, model = args.run / f"{NAME}.safetensors", load_lung_model(args.run / f"{NAME}.safetensors")
    check, guard = (json.loads(path.read_text(encoding="utf-8")) for path in (args.check, args.guard))
    if not check["model"] == guard["model"] == model.digest:
        raise SystemExit("ship_lungs.py: check and guard were measured with other weights")
    if weights.stat().st_size > LARGEST_BYTES:
        raise SystemExit(f"ship_lungs.py: {weights.stat().st_size} bytes, and {LARGEST_BYTES} are the limit")
    out = args.into / weights.name
    for name in (weights.name, weights.name + ".sha256"):
        write_atomic(args.into / name, (args.run / name).read_bytes())
    training = json.loads((args.run / "facts.json").read_text(encoding="utf-8"))
    head = {"schema": SCHEMA, "name": NAME, "kind": "judge", "image_size": model.image_size, "outlines": list(model.classes), "data": DATA,
            "parameters": sum(value.numel() for value in model.network.parameters()), "training": training, "limits": LIMITS,
            "licence": "Apache-2.0", "weights": {"file": out.name, "bytes": out.stat().st_size, "sha256": sha256(out)},
            "digest": model.digest, "outlines_measured": check["lines"], "guard_measured": guard["lines"],
            "tool": f"synthorax {__version__}"}
    write_atomic(args.into / f"{NAME}.md", card(head))
    enter(Shipped(name=NAME, file=out.name, sha256=sha256(out), format=FORMAT, card=f"{NAME}.md", folder=args.into), judge=True)
    print(json.dumps(head["weights"]))


def card(head: dict[str, Any]) -> str:
    """The card: its head as JSON, which `steps.models.card.read_card` reads, and the same in words."""
    training = head["training"]
    looked = ", ".join(f"{facts['lungs']} of {facts['looked_at']} from {name}" for name, facts in training["unlabelled"].items())
    sources = "\n".join(f"| {one['name']} | {one['licence']} | {one['attribution']} |" for one in head["data"])
    parts = [
        f"# {head['name']}",
        f"Judge of anatomy: outlines the {', the '.join(head['outlines'])} of a frontal chest radiograph. It makes no images. "
        "For research; not a medical device.",
        f"- Weights: `{head['weights']['file']}`, {head['weights']['bytes']:,} bytes, {head['parameters']:,} parameters, float16\n"
        f"- SHA-256: `{head['weights']['sha256']}`\n- Licence: {head['licence']}",
        "## Limits", "\n".join(f"- {limit}" for limit in head["limits"]),
        "## Data", "| source | terms | to be named |\n|---|---|---|\n" + sources,
        f"Terms: {'; '.join(licences_of(head['data']))}. Human lung masks of {training['outlined']} images ({training['patients']} "
        f"patients) and {training['drawn']} drawn thoraces trained the first round. The second also learned from outlines of the first on "
        f"images without masks, where it said the same of four variations of an image: {looked}. JSRT and other sets for research "
        "only, and outlines that stem from them, trained nothing and chose nothing.",
        "## Training", f"`python bench/release/train_lungs.py`, {training['updates'][0]} and {training['updates'][1]} updates of 12 images "
        "at 128 px on one processor core.",
        "## Measured", "Against human outlines that trained nothing (`bench/release/check_lungs.py`), mean with 95 % interval by a "
        "bootstrap over patients:",
        _table(("set", "view", "structure", "measure", "images", "value"), [
            (one["set"], one["view"], one["structure"], one["measure"], one["n"], _value(one)) for one in head["outlines_measured"]]),
        "The anatomy guard (`bench/release/check_guard.py`), part of images rejected with Wilson's 95 % interval:",
        _table(("set", "view", "images", "n", "rejected"), [
            (one["set"], one["view"], one["what"], one["n"], f"{one['share']:.3f} [{one['low']:.3f}, {one['high']:.3f}]")
            for one in head["guard_measured"]]),
        f"Made with {head['tool']}.",
    ]
    return f"{FENCE}{json.dumps(head, indent=1, ensure_ascii=False)}\n{FENCE}\n" + "\n\n".join(parts) + "\n"


def _value(one: dict[str, Any]) -> str:
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" if "low" in one else ", ".join(map(str, one["value"]))


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    main()
