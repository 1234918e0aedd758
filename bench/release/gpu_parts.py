"""Carry prepared images and trainings to a borrowed GPU and back, in parts that fit through, bit for bit; and train there.

  python bench/release/gpu_parts.py pack base/prepared .gpu/images --mib 28     # folder -> .gpu/images/part-000-of-003 ...
  python bench/release/gpu_parts.py join .gpu/images base/prepared              # the same folder again
  python bench/release/gpu_parts.py train base-64 --prepared base/prepared --run base/base-64 --hours 2 --minutes 8

`pack` takes of a training only what going on needs: settings, logs, the newest checkpoint, snapshots, the model. `--group 1 --most 7`
writes only the first seven parts, `--group 2` the next, for places that let few files through at a time. gpu_train.sh calls all this.
It needs torch, numpy, pillow, safetensors, filelock, pydantic and tomli-w, nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

MIB = 2**20
DIGEST_BYTES = 32
IMAGES = ".images"
"""end of the name under which an array of images travels, each image as a PNG"""
LEFT_BEHIND = ("tensorboard", "samples", "trial", ".lock")


def main(arguments: list[str] | None = None) -> int:
    """One of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="a folder as parts")
    packing.add_argument("folder", type=Path)
    packing.add_argument("parts", type=Path)
    packing.add_argument("--mib", type=float, default=15.0, help="largest part")
    packing.add_argument("--group", type=int, default=0, help="which parts to write, counted from 1; 0 writes all")
    packing.add_argument("--most", type=int, default=7, help="parts of a group")
    joining = commands.add_parser("join", help="parts as the folder that they were")
    joining.add_argument("parts", type=Path)
    joining.add_argument("folder", type=Path)
    training = commands.add_parser("train", help="go on with a stage for some minutes")
    training.add_argument("stage")
    training.add_argument("--prepared", type=Path, required=True)
    training.add_argument("--run", type=Path, required=True)
    training.add_argument("--hours", type=float, required=True, help="of all stages, as in train_base.py")
    training.add_argument("--minutes", type=float, required=True, help="of this call")
    training.add_argument("--base", type=Path, help="model file or run that the stage starts from")
    training.add_argument("--seed", type=int, default=0, help="as in train_base.py")
    training.add_argument("--set", action="append", default=[], help="further settings of the recipe, such as train.batch_size=64")
    options = parser.parse_args(arguments)
    if options.command == "pack":
        wanted = slice(None) if not options.group else slice((options.group - 1) * options.most, options.group * options.most)
        print(json.dumps(pack(options.folder, options.parts, part_bytes=int(options.mib * MIB), wanted=wanted)))
    elif options.command == "join":
        join(options.parts, options.folder)
    else:
        return train(options)
    return 0


def pack(folder: Path, parts: Path, *, part_bytes: int, wanted: slice = slice(None)) -> dict[str, object]:
    """Write `folder` as files part-NNN-of-MMM of at most `part_bytes`; they end with the SHA-256 of all before it.

    Only the `wanted` parts are written, and other parts in `parts` are removed. The same folder always gives the same parts.
    """
    parts.mkdir(parents=True, exist_ok=True)
    for old in parts.glob("part-*-of-*"):
        old.unlink()
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for path in _files_of(folder):
                _add(archive, path, path.relative_to(folder).as_posix())
        whole.seek(0)
        whole_digest = hashlib.file_digest(whole, "sha256").digest()
        whole.seek(0, 2)
        whole.write(whole_digest)
        total = -(-whole.tell() // part_bytes)
        numbers = range(total)[wanted]
        for number in numbers:
            whole.seek(number * part_bytes)
            (parts / f"part-{number:03d}-of-{total:03d}").write_bytes(whole.read(part_bytes))
    return {"parts": total, "written": len(numbers), "bytes": sum(path.stat().st_size for path in parts.glob("part-*-of-*"))}


def join(parts: Path, folder: Path) -> None:
    """The folder that `pack` was given, in place of what is there. SystemExit where a part is missing or damaged."""
    found = sorted(parts.glob("part-*-of-*"))
    total = int(found[0].name.rsplit("-", 1)[1]) if found else 0
    names = [f"part-{number:03d}-of-{total:03d}" for number in range(total)]
    if [path.name for path in found] != names or not found:
        missing = sorted(set(names) - {path.name for path in found})
        raise SystemExit(f"{parts}: {'missing ' + ', '.join(missing) if missing else 'parts of several packings, or none'}; pack again")
    with tempfile.TemporaryFile() as whole:
        digest = hashlib.sha256()
        kept = b""
        for path in found:
            content = kept + path.read_bytes()
            kept = content[-DIGEST_BYTES:]
            digest.update(content[:-DIGEST_BYTES])
            whole.write(content[:-DIGEST_BYTES])
        if digest.digest() != kept:
            raise SystemExit(f"{parts}: the parts are damaged or not of one packing; pack again")
        whole.seek(0)
        partial = folder.with_name(f".{folder.name}.joining")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(partial, filter="data")
    for images in partial.rglob(f"*{IMAGES}"):
        images.with_name(images.name.removesuffix(IMAGES)).write_bytes(images_back(images.read_bytes()))
        images.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def images_packed(content: bytes) -> bytes:
    """A .npy file of images [N, S, S] with every image as a PNG, which takes less than half; its header travels as it is."""
    images = np.load(io.BytesIO(content))
    pictures = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        pictures.append(buffer.getvalue())
    header = content[: len(content) - images.nbytes]
    lengths = np.array([len(header), len(images), *map(len, pictures)], dtype="<u8")
    return lengths.tobytes() + header + b"".join(pictures)


def images_back(packed: bytes) -> bytes:
    """The .npy file that `films_packed` was given, bit for bit."""
    header_bytes, count = np.frombuffer(packed, dtype="<u8", count=2).tolist()
    lengths = np.frombuffer(packed, dtype="<u8", count=2 + count)[2:].tolist()
    start = 8 * (2 + count)
    header = packed[start : start + header_bytes]
    start += header_bytes
    pixels = []
    for length in lengths:
        pixels.append(np.asarray(Image.open(io.BytesIO(packed[start : start + length]))))
        start += length
    kind = np.lib.format.read_array_header_1_0(io.BytesIO(header[np.lib.format.MAGIC_LEN :]))[2]
    return header + b"".join(image.astype(kind).tobytes() for image in pixels)


def train(options: argparse.Namespace) -> int:
    """Go on with a stage, as train_base.py would; 75 while it is not finished."""
    from stages import STAGES, seconds_of

    from synthorax.data.prepared import Prepared
    from synthorax.engine import started
    from synthorax.folders import only_user
    from synthorax.run import Run
    from synthorax.steps.models.recipe import load_recipe
    from synthorax.steps.models.trained_model import open_model
    from synthorax.steps.training.train_run import Beginning, train_run

    stage = next(stage for stage in STAGES if stage.name == options.stage)
    recipe = load_recipe(stage.recipe, overrides=[*stage.overrides, *options.set]).with_train(seed=options.seed)
    prepared, run = Prepared.load(options.prepared), Run(path=options.run)
    beginning = Beginning(base=None if options.base is None else open_model(options.base), compressor=None)
    with started(precision=recipe.train.precision, seed=recipe.train.seed) as engine, only_user(run.path):
        train_run(run, recipe, prepared, engine=engine, seconds=seconds_of(stage, hours=options.hours), beginning=beginning,
                  pause_seconds=60 * options.minutes)
    return 0 if run.finished else 75


def _files_of(folder: Path) -> Iterator[Path]:
    """What travels of a folder: of checkpoints the newest alone, of a training nothing that it does not go on from."""
    checkpoints = sorted(folder.glob("checkpoints/checkpoint-*.safetensors"))[-1:]
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_file() or parts[0] in LEFT_BEHIND or path.name.startswith("."):
            continue
        if parts[0] == "checkpoints" and path.name.removesuffix(".sha256") not in {newest.name for newest in checkpoints}:
            continue
        yield path


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """One file without anything of this machine: no owner, no time."""
    content = path.read_bytes()
    if path.name == "images.npy":
        name, content = name + IMAGES, images_packed(content)
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    sys.exit(main())
