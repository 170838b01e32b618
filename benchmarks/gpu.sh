#!/usr/bin/env bash
# Measure everything on a GPU machine without a network, from a bare checkout.
#
#     benchmarks/gpu.sh wheels FOLDER         here: fetch what its Python lacks, as wheels (about 13 MB)
#     benchmarks/gpu.sh FOLDER OUT [OPTION]   there: install them beside the checkout, and measure
#
# There, python3 must have torch, transformers, accelerate, safetensors, pillow, numpy, and what else
# these, diffusers and iclora need: jinja2, matplotlib, protobuf, psutil, pyyaml, requests, rich,
# sentencepiece. OPTIONs are those of `iclora bench`; by default --minutes 8.5. PYTHON says which
# Python to take, COMMIT what to write down where there is no .git.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

# The versions this project is tested with, for CPython 3.12 on Linux; VERSION=3.11 takes another.
wanted="diffusers peft pydantic tomli-w"
# What the row `layers` sets beside ours; PEERS="bitsandbytes==0.50.2 optimum-quanto==0.2.7" brings more:
# 43 MB, which with a checkout of 48 MB is more than some machines take.
peers="torchao==0.18.0 ${PEERS:-}"
beside="pydantic-core annotated-types typing-inspection importlib-metadata zipp"

if [ "${1:-}" = wheels ]; then
    folder=${2:?name a folder for the wheels}
    platforms=()
    for glibc in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
    platforms+=(--platform manylinux2014_x86_64)
    # pydantic pins its core to one version, which only it knows.
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version "${VERSION:-3.12}" \
        --implementation cp "${platforms[@]}" -d "$folder" -c "$here/constraints.txt" $wanted $peers
    core=$(cd "$folder" && unzip -p pydantic-[0-9]*.whl '*/METADATA' \
        | sed -n 's/^Requires-Dist: pydantic-core==\([0-9.]*\).*/\1/p' | tr -d '\r')
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version "${VERSION:-3.12}" \
        --implementation cp "${platforms[@]}" -d "$folder" \
        ${beside/pydantic-core/pydantic-core==$core}
    du -sh "$folder"
    # Where the checkout travels with them.
    if size=$(cd "$here" && git ls-files -z | du -cb --files0-from=- | tail -1 | cut -f1); then
        echo "$((size / 1000000)) MB: the checkout's tracked files"
    fi
    exit
fi

folder=${1:?name the folder of wheels} out=${2:?name a folder for the results}
shift 2
site=$(mktemp -d)
# All of them, ahead of what is there: mixed halves of one package would be worse.
"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" "$folder"/*.whl
# What the checkout registers (toyland among it) is known by its entry points, which an install writes.
"$python" - "$here" "$site" <<'END'
import sys, tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1], "pyproject.toml").read_text())["project"]
known = Path(sys.argv[2], f"iclora-{project['version']}.dist-info")
known.mkdir()
name, version = project["name"], project["version"]
known.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
groups = project["entry-points"].items()
lines = [l for group, own in groups for l in (f"[{group}]", *(f"{k} = {v}" for k, v in own.items()))]
known.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
END
export PYTHONPATH=$here/src:$site PYTHONUNBUFFERED=1
export ICLORA_CACHE=${ICLORA_CACHE:-$(mktemp -d)}
[ $# -gt 0 ] || set -- --minutes 8.5
# A row that failed is in the results: they count, not the exit status.
"$python" -m iclora bench --out "$out" ${COMMIT:+--commit "$COMMIT"} "$@" || true
cat "$out/bench.md"
