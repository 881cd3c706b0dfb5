#!/usr/bin/env bash
# benchmarks/gpu.py on a machine with a GPU, torch, transformers, peft and accelerate, but without a network.
#
#     benchmarks/gpu.sh pack             here: our wheels, and those that such a machine lacks, into dist/
#     benchmarks/gpu.sh run [options]    there, in a copy of this tree with dist/: install them aside, run gpu.py
#
# For x86-64 and Python 3.12; PYTHON_VERSION=3.11 and the like for another. Of bitsandbytes only the libraries for
# CUDA 13.0 are carried (CUDA=128 and the like for another), a fifteenth of its size.
set -euo pipefail
cd "$(dirname "$0")/.."

pack() {
    make wheels
    local platforms=() wanted=()
    for glibc in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
    local version='import importlib.metadata as m, sys; print(m.version(sys.argv[1]))'
    for name in trl datasets dill multiprocess xxhash pluggy bitsandbytes pydantic pydantic_core annotated_types typing_inspection; do
        wanted+=("$name==$(.venv/bin/python -c "$version" "$name")")
    done
    .venv/bin/pip download -q --no-deps --only-binary=:all: --implementation cp \
        --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" --platform manylinux2014_x86_64 \
        -d dist "${wanted[@]}"
    .venv/bin/python - "${CUDA:-130}" dist/bitsandbytes-*.whl <<'PYTHON'
import sys, zipfile
from pathlib import Path

cuda, file = sys.argv[1], Path(sys.argv[2])
keep = {f"libbitsandbytes_cuda{cuda}.so", "libbitsandbytes_cpu.so"}
with zipfile.ZipFile(file) as wheel:
    chosen = [one for one in wheel.infolist() if not one.filename.endswith(".so") or Path(one.filename).name in keep]
    files = [(one, wheel.read(one)) for one in chosen]
with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as small:
    for one, content in files:
        small.writestr(one, content)
PYTHON
    du -sh dist
}

run() {
    local site
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" dist/*.whl
    PYTHONPATH=$site python3 - <<'PYTHON'
import sys
from importlib.util import find_spec

NEEDED = "torch transformers peft accelerate trl datasets pyarrow pandas xxhash bitsandbytes pydantic pluggy click rich yaml"
if missing := [name for name in NEEDED.split() if find_spec(name) is None]:
    sys.exit(f"this machine lacks {', '.join(missing)}: nothing was measured")
PYTHON
    local ours  # the code of this tree, which may be newer than the wheels; these have the entry points
    ours=$(printf '%s:' "$PWD" "$PWD"/plugins/* "$PWD"/reward_functions/*)
    PYTHONPATH=$ours$site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 python3 -m benchmarks.gpu "$@"
}

case "${1:-}" in
    pack | run) "$@" ;;
    *) echo "usage: benchmarks/gpu.sh pack | run [options of benchmarks.gpu]" >&2; exit 2 ;;
esac
