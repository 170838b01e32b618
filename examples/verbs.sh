#!/usr/bin/env bash
# The whole of In-Context LoRA on the command line, verb by verb, on a tiny random base.
# Its pictures are NOISE, for the base's weights are random; the walk is the one for a true base.
#
#     examples/verbs.sh FOLDER [tiny, tiny-klein, tiny-flux2, tiny-zimage, tiny-krea or tiny-qwen]
set -euo pipefail
out=${1:?give a new folder}
base=${2:-tiny}
here=$(cd "$(dirname "$0")" && pwd)
if [ -e "$out" ]; then echo "$out exists; remove it first"; exit 2; fi
mkdir -p "$out"
step() { printf '\n== %s\n' "$*"; }

step "1. image sets: eight storyboards of three panels, drawn here"
python "$here/draw_storyboards.py" "$out/sets" 8

step "2. compose: three panels to a canvas, nothing cropped"
iclora compose "$out/sets" --recipe film-storyboard --out "$out/data"

step "3. check: every image, every caption, every token"
iclora check "$out/data" --base "$base"

step "4. plan: what the run will take, and with which settings"
iclora plan --base "$base" --data "$out/data" --resolutions 256 384 --batch 2 --device cpu --vram 4

step "5. train: a rank-16 LoRA, 20 steps on a random base"
iclora train --base "$base" --data "$out/data" --out "$out/run" --steps 20 --batch 2 \
    --resolutions 256 384 --preview-every 10 --preview-resolution 384 --no-gradient-checkpointing

prompt="[MOVIE-SHOTS] A calm day at sea in flat colours follows a boat with a blue sail, \
[SCENE-1] <Ada> leaves the bay small on the left, [SCENE-2] at noon the boat of <Ada> fills the \
picture, [SCENE-3] and finally <Ada> heads home on the right."

step "6. generate: a new set from words"
iclora generate --adapter "$out/run/adapter.safetensors" --prompt "$prompt" --size 480x672 \
    --seed 7 --out "$out/made"

step "7. complete: the first panel is given, the others are made around it"
iclora complete --adapter "$out/run/adapter.safetensors" --given "1=$out/sets/0001/1.png" \
    --prompt "$prompt" --seed 7 --out "$out/made"

step "8. repeat: a request gives the same bytes again"
iclora complete "$out/made/0002/request.json" --out "$out/again"
cmp "$out/made/0002/composite.png" "$out/again/0001/composite.png" && echo "the same bytes"

step "9. info: what the adapter carries"
iclora info "$out/run/adapter.safetensors"

cat <<EOF

Done. The base is RANDOM, so $out/made holds noise beside the panel that was given;
with --base black-forest-labs/FLUX.2-klein-base-4B the same commands make pictures.
  $out/data/0001.png                 a composite
  $out/run/previews, $out/run/loss.png
  $out/made/0001, $out/made/0002     sets, panel by panel
EOF
