#!/usr/bin/env bash
# Train a stage of the base model on a borrowed GPU that runs commands of a few minutes on a copy of this checkout, and forgets them.
#
#   here:  bash bench/release/gpu_train.sh wheels               # .gpu/wheels: what its Python lacks, for Python 3.12 on Linux, once
#          bash bench/release/gpu_train.sh send base base-64    # .gpu/images and .gpu/state: prepared images and the training so far, in parts
#   there: bash bench/release/gpu_train.sh train OUT base-64 --hours 2          # goes on for MINUTES (8), then writes parts to OUT
#          bash bench/release/gpu_train.sh more OUT base-64 2                   # the parts that did not fit into OUT, group by group
#   here:  bash bench/release/gpu_train.sh receive PARTS... base base-64        # joins the parts and puts the training back into base/
#
# base/ is the --out of bench/release/train_base.py, which goes on with the training that was brought back, and measures, packs and evaluates it.
# .gpu/ is ignored by git. Where not all of it fits through at once, send its files in several calls; they may arrive in any order.
# A stage that starts from another one needs its model as .gpu/base/model.safetensors, with the .sha256 beside it.
# Sizes: IMAGES_MIB (28) a part of images, STATE_MIB (15) a part of a training, MOST (7) parts in OUT at once.
set -euo pipefail
cd "$(dirname "$0")/../.."

python="${PYTHON:-python3}"
images_mib="${IMAGES_MIB:-28}"
state_mib="${STATE_MIB:-15}"
most="${MOST:-7}"
work=.gpu/work   # unpacked images and the training, on the borrowed machine

# What training imports and a Python with torch and numpy may lack; bench/release/gpu_parts.py says the same and tests/training/test_gpu_parts.py checks it.
packages=(pillow safetensors filelock pydantic pydantic-core annotated-types typing-inspection typing-extensions tomli-w)

usable() {  # packages from .gpu/wheels and this checkout, importable without an installation
  local site="$PWD/.gpu/site" version
  if [ -d .gpu/wheels ] && [ ! -d "$site" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .gpu/wheels/*.whl
  fi
  version="$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)"
  mkdir -p "$site/synthorax-$version.dist-info"  # stands in for an installation, which would need more packages to build
  printf 'Metadata-Version: 2.1\nName: synthorax\nVersion: %s\n' "$version" > "$site/synthorax-$version.dist-info/METADATA"
  export PYTHONPATH="$PWD/src:$site"
}

case "${1:-}" in
  wheels)
    mkdir -p .gpu/wheels
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
      --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
      --dest .gpu/wheels "${packages[@]}"
    ;;
  send)
    base="$2" stage="$3"
    "$python" bench/release/gpu_parts.py pack "$base/prepared" .gpu/images --mib "$images_mib"
    if [ -d "$base/$stage" ]; then "$python" bench/release/gpu_parts.py pack "$base/$stage" .gpu/state --mib "$state_mib"; fi
    ;;
  train)
    out="$2" stage="$3"
    shift 3
    usable
    if [ ! -d "$work/prepared" ]; then "$python" bench/release/gpu_parts.py join .gpu/images "$work/prepared"; fi
    if [ ! -d "$work/$stage" ] && [ -d .gpu/state ]; then "$python" bench/release/gpu_parts.py join .gpu/state "$work/$stage"; fi
    base_model=()
    if [ -e .gpu/base/model.safetensors ]; then base_model=(--base .gpu/base/model.safetensors); fi
    status=0
    "$python" bench/release/gpu_parts.py train "$stage" --prepared "$work/prepared" --run "$work/$stage" --minutes "${MINUTES:-8}" \
      "${base_model[@]}" "$@" || status=$?
    if [ "$status" != 0 ] && [ "$status" != 75 ]; then exit "$status"; fi
    "$python" bench/release/gpu_parts.py pack "$work/$stage" "$out" --mib "$state_mib" --group 1 --most "$most"
    ;;
  more)
    usable
    "$python" bench/release/gpu_parts.py pack "$work/$3" "$2" --mib "$state_mib" --group "$4" --most "$most"
    ;;
  receive)
    stage="${*: -1}"
    base="${*: -2:1}"
    rm -rf .gpu/received
    mkdir -p .gpu/received
    for parts in "${@:2:$#-3}"; do cp "$parts"/part-*-of-* .gpu/received/; done
    "$python" bench/release/gpu_parts.py join .gpu/received "$base/$stage"
    ;;
  *)
    sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
