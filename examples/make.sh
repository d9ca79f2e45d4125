#!/usr/bin/env bash
# Everything in this folder, made from generated faces by the commands that a user has.
#   examples/make.sh            (with the environment's `pdae` on the path)
set -euo pipefail
cd "$(dirname "$0")"
pdae sample -n 16 --seed 7 --inference-steps 50 -o samples.png --overwrite
pdae sample -n 6 --seed 7 --inference-steps 50 -o faces --overwrite
pdae reconstruct faces -o reconstructions --compare --overwrite
for mode in latent trajectory; do
    pdae interpolate faces/00000.png faces/00001.png --steps 10 --mode "$mode" \
        -o "interpolation-$mode.png" --overwrite
done
for attribute in smiling eyeglasses male young blond_hair; do
    pdae manipulate faces/00000.png --attr "$attribute" --scale=-0.3,-0.15,0,0.15,0.3 \
        -o "edit-$attribute.png" --overwrite
done
