#!/usr/bin/env bash
# Everything in this folder, made from generated faces by the commands that a user has.
#   examples/make.sh            (with the environment's `pdae` on the path)
set -euo pipefail
cd "$(dirname "$0")"
pdae sample -n 16 --seed 7 --inference-steps 50 -o samples.png --overwrite
pdae sample -n 6 --seed 7 --inference-steps 50 -o faces --overwrite
pdae reconstruct faces -o reconstructions --compare --overwrite
for mode in latent trajectory; do
    pdae interpolate faces/00003.png faces/00004.png --steps 10 --mode "$mode" \
        -o "interpolation-$mode.png" --overwrite
done
for attribute in smiling eyeglasses male young blond_hair; do
    pdae manipulate faces/00002.png --attr "$attribute" --scale=-0.3,-0.15,0,0.15,0.3 \
        -o "edit-$attribute.png" --overwrite
done

# A real photo and four edits of it, pasted back: astronaut-edits.jpg, the picture of the README.
edits=(smiling=-0.3 smiling=0.3 male=0.3 young=-0.3)
work=$(mktemp -d)
for edit in "${edits[@]}"; do
    pdae manipulate astronaut.jpg --align --paste-back --attr "$edit" -o "$work/$edit.jpg" --quiet
done
python - astronaut.jpg "${edits[@]/#/$work/}" <<'PYTHON'
import sys
from PIL import Image

paths = [path if path.endswith(".jpg") else f"{path}.jpg" for path in sys.argv[1:]]
row = Image.new("RGB", (240 * len(paths), 240))
for column, path in enumerate(paths):
    with Image.open(path) as photo:
        row.paste(photo.crop((90, 0, 360, 270)).resize((240, 240)), (240 * column, 0))
row.save("astronaut-edits.jpg", quality=90)
PYTHON
rm -r "$work"
