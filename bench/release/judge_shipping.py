"""What the scripts that ship judges share: weights into the zoo, the line in its table of judges, and the frame of a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synthorax import __version__
from synthorax.files import sha256, write_atomic
from synthorax.run import FORMAT
from synthorax.steps.models.card import FENCE, SCHEMA, licences_of
from synthorax.zoo import Shipped, enter

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
"""all that judges of anatomy learn from"""


def head_of(weights: Path, *, into: Path, largest_bytes: int, **facts: Any) -> dict[str, Any]:
    """The head of a judge's card: `facts`, and what is known of any judge. Its weights are copied `into` the zoo.

    Ends the script where they are larger than `largest_bytes`.
    """
    size = weights.stat().st_size
    if size > largest_bytes:
        raise SystemExit(f"{weights}: {size} bytes, and {largest_bytes} are the limit")
    for name in (weights.name, weights.name + ".sha256"):
        write_atomic(into / name, weights.with_name(name).read_bytes())
    training = json.loads(weights.with_name("facts.json").read_text(encoding="utf-8"))
    return {"schema": SCHEMA, "kind": "judge", **facts, "training": training, "licence": "Apache-2.0",
            "weights": {"file": weights.name, "bytes": size, "sha256": sha256(weights)}, "tool": f"synthorax {__version__}"}


def enter_judge(head: dict[str, Any], parts: list[str], *, purpose: str, into: Path) -> None:
    """Write the card, `parts` in words after what every card of a judge says, and the line in the table; prints the weights' facts."""
    name, weights = head["name"], head["weights"]
    sources = "\n".join(f"| {one['name']} | {one['licence']} | {one['attribution']} |" for one in head["data"])
    words = [
        f"# {name}", f"{purpose} It makes no images. For research; not a medical device.",
        f"- Weights: `{weights['file']}`, {weights['bytes']:,} bytes, {head['parameters']:,} parameters, float16\n"
        f"- SHA-256: `{weights['sha256']}`\n- Licence: {head['licence']}",
        "## Limits", "\n".join(f"- {limit}" for limit in head["limits"]),
        "## Data", "| source | terms | to be named |\n|---|---|---|\n" + sources,
        f"Terms: {'; '.join(licences_of(head['data']))}. {parts[0]}", *parts[1:], f"Made with {head['tool']}."]
    write_atomic(into / f"{name}.md", f"{FENCE}{json.dumps(head, indent=1, ensure_ascii=False)}\n{FENCE}\n" + "\n\n".join(words) + "\n")
    enter(Shipped(name=name, file=weights["file"], sha256=weights["sha256"], format=FORMAT, card=f"{name}.md", folder=into), judge=True)
    print(json.dumps(weights))


def table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def share(one: dict[str, Any]) -> str:
    """A part of images with its interval."""
    return f"{one['share']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
