"""Do inserted lesions help a judge to find real ones? The study of docs/studies/lesion-proof.md, as lesion_proof.toml states it.

  python bench/studies/lesion_proof.py power
  python bench/studies/lesion_proof.py prepare --out proof/ --jsrt jsrt/ --nih nih/ --base base/prepared
  python bench/studies/lesion_proof.py cost --out proof/
  python bench/studies/lesion_proof.py run --out proof/ --part A --budget 60
  python bench/studies/lesion_proof.py drains --out proof/ --nih nih/ --drains nih-drain/drains.csv
  python bench/studies/lesion_proof.py table --out proof/

`prepare` keeps images, features and the SHA-256 of the protocol; it shows no image to a judge that learns. `run` writes one line of JSON
for each arm, k, fold and seed, leaves out what is there, and stops after --budget minutes. It refuses where the protocol is not the one
that was kept. `table` reads the lines alone.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lesion_proof_arms import ARMS, Observer, Pools, Said, TrainingSet, classify, detect, training_set, untrained
from lesion_proof_data import Cases, capped, folds_of, generate, insert_into, join, read_cases, subtleties, varied
from lesion_proof_table import drain_answer, power, tables
from numpy.typing import NDArray

from synthorax import zoo
from synthorax.files import write_atomic, write_json
from synthorax.judges.features import load_features
from synthorax.judges.lesion_detector import DetectorConfig
from synthorax.rng import derive

PROTOCOL = Path(__file__).with_suffix(".toml")
KEPT = "protocol.sha256"
KINDS = ("real", "classic", "inserted", "template", "generated", "generated_normal")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One training and its test."""

    part: str
    judge: str
    finding: str
    arm: str
    k: int
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """By which a line is found again."""
        return "/".join(str(getattr(self, name)) for name in self.__slots__)


def digest(protocol: Path = PROTOCOL) -> str:
    """SHA-256 of the protocol's bytes."""
    return hashlib.sha256(protocol.read_bytes()).hexdigest()


def check_protocol(out: Path, *, protocol: Path = PROTOCOL) -> str:
    """The protocol's digest; refuses where `out` keeps another, or none."""
    kept = (out / KEPT).read_text(encoding="ascii").strip() if (out / KEPT).exists() else ""
    if kept != digest(protocol):
        sys.exit(f"{protocol.name} has the digest {digest(protocol)[:16]}..., and {out} was prepared with "
                 f"{kept[:16] + '...' if kept else 'none'}: test data stay closed")
    return kept


def units(protocol: Mapping[str, Any], part: str) -> Iterator[Unit]:
    """Every training of a part, the primary comparison's first."""
    own = protocol[part]
    for judge in own["judges"]:
        sizes = sorted(judge["k"], key=lambda k: (k != protocol["primary_k"], k))
        for k, seed, finding, fold, arm in itertools.product(sizes, range(protocol["seeds"]), own["findings"], range(own["folds"]), ARMS):
            yield Unit(part=part, judge=judge["name"], finding=finding, arm=arm, k=k, fold=fold, seed=seed)
    if part == "A":
        for fold in range(own["folds"]):
            yield Unit(part=part, judge="filter", finding="Nodule", arm="untrained", k=0, fold=fold, seed=0)


class Judges:
    """The judges of a part on its pools: a unit in, what the judge says of the test images out."""

    def __init__(self, protocol: Mapping[str, Any], part: str, pools: Pools, features: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        self.protocol, self.part, self.pools, self.features = protocol, part, pools, features
        self.observer = Observer(hard=protocol["observer"]["hard"], random=protocol["observer"]["random"])
        self.detector = DetectorConfig(**protocol["detector"])

    def tested(self, fold: int) -> NDArray[np.intp]:
        """Rows of the test images."""
        return np.flatnonzero(self.pools.real.folds == fold)

    def learned(self, unit: Unit) -> TrainingSet | None:
        """What a unit learns from."""
        return training_set(self.pools, arm=unit.arm, finding=unit.finding, k=unit.k, fold=unit.fold, seed=unit.seed,
                       num=self.protocol["num_synthetic"])

    def __call__(self, unit: Unit, *, rows: NDArray[np.intp] | None = None) -> Said | None:
        """None where the training folds have too few patients with the finding."""
        rows = self.tested(unit.fold) if rows is None else rows
        test, least = self.pools.real.take(rows), float(self.protocol["A"]["least_box_px"])
        if unit.judge == "filter":
            return untrained(test, least_px=least)
        learned = self.learned(unit)
        if learned is None:
            return None
        seed = derive(unit.seed, "judge", unit.fold, unit.k)
        if unit.judge == "observer":
            return self.observer(learned, test, seed=seed, least_px=least)
        if unit.judge == "detector":
            return detect(learned, test, seed=seed, least_px=least, config=self.detector)
        seen = self.features[unit.judge]

        def of(keys: NDArray[np.str_], _: Cases) -> NDArray[np.float64]:
            return np.stack([seen[kind][int(row)] for kind, row in (key.split(":") for key in keys)]).astype(np.float64)

        return classify(learned, of, seen["real"][rows].astype(np.float64), strength=self.protocol["strength"], arm=unit.arm, seed=seed)


def run(judges: Judges, todo: Iterator[Unit], *, lines: Path, digest_of_protocol: str, budget_minutes: float) -> int:
    """Run what is not there yet, one line each; returns how many were run."""
    end, count = time.monotonic() + 60 * budget_minutes, 0
    done = set()
    if lines.exists():
        whole = [line for line in lines.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        write_atomic(lines, "".join(line + "\n" for line in whole))  # without a line that was cut off
        for line in map(json.loads, whole):
            if line["protocol"] != digest_of_protocol:
                sys.exit(f"{lines} has results of another protocol")
            done.add(line["unit"])
    for unit in todo:
        if unit.name in done:
            continue
        if time.monotonic() > end:
            break
        begun = time.process_time()
        said = judges(unit)
        line: dict[str, Any] = {"unit": unit.name, "protocol": digest_of_protocol, "seconds": round(time.process_time() - begun, 2)}
        line |= {name: getattr(unit, name) for name in Unit.__slots__}
        if said is None:
            line["left_out"] = "too few patients with the finding"
        else:
            line |= {"rows": judges.tested(unit.fold).tolist(), "scores": _short(said.scores), "lesion_scores": _short(said.lesion_scores),
                     "false_images": said.false_images.tolist(), "false_scores": _short(said.false_scores)}
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        count += 1
    return count


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def prepare(out: Path, *, jsrt: Path, nih: Path, base: Path, protocol: Mapping[str, Any], only: str) -> None:
    """Read, fold, insert, generate; each file once."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / KEPT).exists():
        write_atomic(out / KEPT, digest() + "\n")
    check_protocol(out)
    write_json(out / "models.json", {name: one.sha256 for name, one in {**zoo.shipped(), **zoo.judges()}.items()})
    seed = protocol["seed"]
    own, findings = protocol["A"], tuple(protocol["B"]["findings"])
    if "A" in only:
        def real_a() -> Cases:
            tests, subtle = read_cases(jsrt, boxes=True), subtleties(jsrt)
            tests = replace(tests, findings=np.array(["Nodule" if subtle[patient] else "No Finding" for patient in tests.patients]))
            tests = replace(tests, folds=folds_of(tests, strata=subtle, folds=own["folds"], seed=seed))
            hosts = read_cases(nih, base=base)
            hosts = hosts.take(np.flatnonzero((hosts.findings == "No Finding") & (hosts.views == "PA")))
            return join(tests, hosts.take(capped(hosts, most=protocol["images_per_patient"], seed=seed)))

        _parts(out / "A", real_a, findings=("Nodule",), protocol=protocol)
    if "B" in only:
        def real_b() -> Cases:
            cases = read_cases(nih, base=base)
            cases = cases.take(capped(cases, most=protocol["images_per_patient"], seed=seed))
            order = (*sorted(findings, key=lambda name: int(cases.having(name).sum())), "")
            strata = {str(patient): min(next(at for at, name in enumerate(order) if not name or name in text.split("|"))
                                        for text in cases.findings[cases.patients == patient]) for patient in np.unique(cases.patients)}
            return replace(cases, folds=folds_of(cases, strata=strata, folds=protocol["B"]["folds"], seed=seed))

        _parts(out / "B", real_b, findings=findings, protocol=protocol)
        for name in protocol["spaces"]:
            space = load_features(name)
            for kind in KINDS:
                path = out / "B" / f"{kind}-{name.replace(':', '-')}.npy"
                if not path.exists():
                    np.save(path, space(Cases.load(out / "B" / f"{kind}.npz").images))


def _parts(out: Path, real: Any, *, findings: tuple[str, ...], protocol: Mapping[str, Any]) -> None:
    """The pools of a part, each in a file; and in made.json what made the lesions."""
    out.mkdir(exist_ok=True)
    seed, told = protocol["seed"], out / "made.json"

    def once(kind: str, make: Any) -> Cases:
        path = out / f"{kind}.npz"
        if not path.exists():
            begun = time.process_time()
            make().save(path)
            print(f"{out.name} {kind}: {time.process_time() - begun:.0f} s", flush=True)
        return Cases.load(path)

    cases = once("real", real)
    hosts = np.flatnonzero(cases.having("No Finding"))
    shown = np.flatnonzero(np.any([cases.having(name) for name in findings], axis=0))

    def classic() -> Cases:
        parts = [(shown, varied(cases.take(shown), times=protocol["copies"], seed=seed)),
                 (hosts, varied(cases.take(hosts), times=1, seed=seed + 1))]
        return join(*(replace(part, source=rows[part.source]) for rows, part in parts))

    def inserted(analytic: bool) -> Cases:
        parts = []
        for name in findings:
            part, facts = insert_into(cases.take(hosts), finding=name, model=None, times=1, seed=seed, analytic=analytic)
            known = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}
            write_json(told, known | {f"{name}, {'template' if analytic else 'inserted'}": {**facts, "images": len(part)}})
            parts.append(replace(part, source=hosts[part.source]))
        return join(*parts)

    def generated() -> Cases:
        places = None
        if out.name == "A":
            rng = np.random.default_rng(seed)
            lungs = [np.argwhere(cases.lungs[row]) / cases.images.shape[1] for row in hosts[:40]]
            middles = np.array([rng.permutation(one)[0][::-1] for one in lungs if len(one)])
            places = np.column_stack([middles, np.exp(rng.uniform(np.log(0.03), np.log(0.09), len(middles)))])
        return join(*(generate(name, model=protocol["model"], num=protocol["num_synthetic"], places=places, out=out / "made", seed=seed)
                      for name in findings))

    once("classic", classic)
    once("template", lambda: inserted(True))
    once("inserted", lambda: inserted(False))
    once("generated", generated)
    once("generated_normal", lambda: generate("No Finding", model=protocol["model"], num=protocol["num_synthetic"], places=None,
                                              out=out / "made", seed=seed))


def load(out: Path, part: str, protocol: Mapping[str, Any]) -> Judges:
    """The judges of a part on what `prepare` kept."""
    pools = Pools(**{kind: Cases.load(out / part / f"{kind}.npz") for kind in KINDS})
    features: dict[str, dict[str, NDArray[Any]]] = {}
    if part == "B":
        for name in protocol["spaces"]:
            features[name] = {kind: np.load(out / part / f"{kind}-{name.replace(':', '-')}.npy") for kind in KINDS}
        features["both spaces"] = {kind: np.concatenate([features[name][kind] for name in protocol["spaces"]], axis=1) for kind in KINDS}
    return Judges(protocol, part, pools, features)


def facts_of(judges: Judges) -> dict[str, Any]:
    """Of the test images of a part, for the table: no pixels."""
    real = judges.pools.real
    return {"patients": real.patients.tolist(), "folds": real.folds.tolist(), "findings": real.findings.tolist(),
            "views": real.views.tolist(), "splits": real.splits.tolist(), "lesion_rows": real.lesions().image.tolist()}


def cost(judges: Judges, protocol: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    """Judge, units and processor seconds of a whole part, by one training of each judge, which looks at training images alone."""
    table = []
    for judge in dict.fromkeys(unit.judge for unit in units(protocol, judges.part)):
        some = [unit for unit in units(protocol, judges.part) if unit.judge == judge]
        taken = []
        for unit in (some[0], next(unit for unit in some if unit.arm in ("inserted", "untrained"))):
            begun = time.process_time()
            judges(unit, rows=np.flatnonzero((judges.pools.real.folds != unit.fold) & judges.pools.real.having("No Finding"))[:100])
            taken.append(time.process_time() - begun)
        table.append((judge, len(some), len(some) * taken[-1] + taken[0]))
    return table


def main() -> int:
    """One stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("power", "prepare", "cost", "run", "drains", "table"))
    parser.add_argument("--out", type=Path, default=Path("proof"))
    for name in ("jsrt", "nih", "base", "drains"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--part", choices=("A", "B", "AB"), default="AB")
    parser.add_argument("--budget", type=float, default=60, help="minutes; a unit that has begun is finished")
    told = parser.parse_args()
    protocol = tomllib.loads(PROTOCOL.read_text(encoding="utf-8"))
    if told.stage == "power":
        print(power())
        return 0
    if told.stage == "prepare":
        if None in (told.jsrt, told.nih, told.base):
            parser.error("prepare needs --jsrt, --nih and --base")
        prepare(told.out, jsrt=told.jsrt, nih=told.nih, base=told.base, protocol=protocol, only=told.part)
        return 0
    kept = check_protocol(told.out)
    if told.stage == "table":
        print(tables(told.out, protocol, digest=kept))
        return 0
    for part in told.part:
        if not (told.out / part / "generated_normal.npz").exists():
            print(f"part {part} is not prepared", file=sys.stderr)
            continue
        judges = load(told.out, part, protocol)
        write_json(told.out / f"facts-{part}.json", facts_of(judges))
        if told.stage == "cost":
            for judge, num, seconds in cost(judges, protocol):
                print(f"{part} {judge}: {num} units, {seconds / 60:.0f} minutes")
        elif told.stage == "run":
            num = run(judges, units(protocol, part), lines=told.out / f"lines-{part}.jsonl", digest_of_protocol=kept,
                      budget_minutes=told.budget)
            print(f"{part}: {num} units run")
        elif part == "B":
            if None in (told.drains, told.nih):
                parser.error("drains needs --drains and --nih")
            name = protocol["spaces"][0]
            answer = drain_answer(judges.pools, judges.features[name], load_features(name), drains=told.drains, nih=told.nih,
                                  strength=protocol["strength"], seed=protocol["seed"])
            write_json(told.out / "drains.json", answer | {"protocol": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
