"""How well faces are found and brought into the frame, and how well codes tell that they aren't.

    python benchmarks/alignment.py DATA.zip

DATA.zip holds aligned faces and a labels.csv with their split, as for training; only `val` is used.
Faces are enlarged and put into larger photos at known places. Needs pdae-cli[align].
"""

from __future__ import annotations

import argparse
import cmath
import csv
import io
import math
import random
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from pdae_cli import load
from pdae_cli.errors import InputError
from pdae_cli.evaluation.likeness import LIMIT, Likeness
from pdae_cli.pictures.images import to_float, to_tensor
from pdae_cli.pictures.photos.faces import FaceFinder
from pdae_cli.pictures.photos.frames import Frame, paste_back, take

TILTS = (15, -22, 40)
UPRIGHT = 60  # upright photos
SIZE = 64
VARIANTS = {  # zoom, degrees, shift in sides
    "as they are": (1, 0, 0),
    "1.5 times as large": (1.5, 0, 0),
    "0.65 times": (0.65, 0, 0),
    "shifted by 0.15": (1, 0, 0.15),
    "shifted by 0.3": (1, 0, 0.3),
    "turned by 20 degrees": (1, 20, 0),
    "turned by 45 degrees": (1, 45, 0),
    "upside down": (1, 180, 0),
}


def validation_faces(path: Path, count: int) -> list[Image.Image]:
    """Random pictures of the `val` split, as many of each source."""
    archive = zipfile.ZipFile(path)
    rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
    rows = [row for row in rows if row["split"] == "val"]
    random.Random(2).shuffle(rows)
    sources = sorted({row["source"] for row in rows})
    each = [[row for row in rows if row["source"] == source] for source in sources]
    names = [one[number]["file"] for one in each for number in range(count // len(sources))]
    return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]


def similarity(
    zoom: float, degrees: float, middle: complex, target: complex, outside: str
) -> Frame:
    """Turned and zoomed, `middle` of the photo at `target` of the square."""
    alpha = zoom * complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    beta = target - alpha * middle
    matrix = (alpha.real, -alpha.imag, beta.real, alpha.imag, alpha.real, beta.imag)
    return Frame(matrix, SIZE, outside)


def photo_with(face: Image.Image, tilt: float, seed: int) -> tuple[Image.Image, Frame]:
    """800x640 pixels of coloured haze with a face of 300, and the face's frame."""
    colours = torch.randint(
        80, 180, (3 * 9 * 12,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    haze = Image.frombytes("RGB", (12, 9), colours.numpy().tobytes())
    photo = haze.resize((800, 640), Image.Resampling.BICUBIC)
    middle = complex(410, 325)
    frame = similarity(SIZE / 300, -tilt, middle, complex(SIZE, SIZE) / 2, "repeat")
    edit = to_float(to_tensor(face)) - to_float(to_tensor(take(photo, frame)))
    return paste_back(photo, torch.zeros_like(edit), edit, frame), frame


def found(faces: list[Image.Image], tilts: Sequence[float]) -> None:
    print(f"Faces found, of {len(faces)} at each tilt (corners: off by a share of the side)")
    finder = FaceFinder()
    for tilt in tilts:
        counts: Counter[str] = Counter()
        errors, turns = [], []
        for seed, face in enumerate(faces):
            photo, frame = photo_with(face, tilt, seed)
            try:
                guess = next(finder(photo, SIZE))
            except InputError:
                counts["none found"] += 1
                continue
            errors.append(frame.off(guess.frame))
            turns.append(math.degrees(abs(cmath.phase(guess.frame.complex[0] / frame.complex[0]))))
            counts["wrong" if errors[-1] > 0.3 else guess.how] += 1
        beyond = sum(turn > 5 for turn in turns)
        print(
            f"  {tilt:4d}: off by {median(errors):.3f}, at most {max(errors):.3f}; turned by "
            f"{median(turns):.1f}, at most {max(turns):.1f}, {beyond} by more than 5; "
            f"{dict(counts)}",
            flush=True,
        )


def told(faces: list[Image.Image], model_name: str) -> None:
    model = load(model_name, "cpu")
    likeness = Likeness.of(model)
    assert likeness is not None
    print(f"Distances of {len(faces)} faces' codes; beyond {LIMIT}")
    centre = complex(SIZE, SIZE) / 2
    for name, (zoom, degrees, shift) in VARIANTS.items():
        frame = similarity(zoom, degrees, centre, centre + shift * SIZE, "repeat")
        pictures = [to_float(to_tensor(take(face, frame))) for face in faces]
        codes = model.encode_z(torch.stack(pictures)).cpu()
        distances = likeness.distances(codes)
        plain = model.normalise(codes).square().mean(1)
        beyond = sum(one > LIMIT for one in distances)
        print(
            f"  {name:22s} median {median(distances):5.2f}  beyond {beyond}/{len(faces)}"
            f"  mean z^2 {plain.median():.2f} ({plain.min():.2f} … {plain.max():.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="faces64")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--found-alone", action="store_true", help="Leave out the codes.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faces = validation_faces(arguments.data, arguments.count)
    if not arguments.found_alone:
        told(faces, arguments.model)
    found(validation_faces(arguments.data, UPRIGHT), [0])
    found(faces, TILTS)


if __name__ == "__main__":
    main()
