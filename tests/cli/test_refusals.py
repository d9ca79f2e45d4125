"""What can't be is refused: a line, the exit code, nothing on standard output, no file changed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import folder_of, outputs, own_model
from conftest import Command, picture

from pdae_cli.pictures.images import LONGEST

Refused = Callable[[str, int], str]
ONE = "--attr smiling=1"
FACE = {"left_eye": [10, 12], "right_eye": [20, 12.5], "mouth": [15, 22]}
SPREADS = {"Smiling": (0.5, 2.0), "Blond_Hair": (-1.0, 0.5)}
# Exit code, line, and words of what is said.
REFUSED = [
    (2, "help nothing", "no command 'nothing' in pdae; known: align, "),
    (2, "help train nothing", "no command 'nothing' in pdae train"),
    (4, "info no-such-model", "neither a folder nor bundled"),
    # Inputs and outputs
    (2, "encode", "no input"),
    (2, "encode - -", "only once"),
    (2, "encode a.png -o z.png", "can't write .png here"),
    (2, "decode a.png -o z.xyz", "can't write .xyz here"),
    (2, "reconstruct a.png b.png -o x.png", "need a folder"),
    *[(2, f"{line} -o x.png", "-o x.png and --format contradict each other; leave --format out")
      for line in ("reconstruct a.png --format jpg", "decode a.png --format webp",
                   f"manipulate a.png {ONE} --format codes", "sample -n 1 --format gif")],
    (2, f"manipulate a.png {ONE} --format png -o x.jpeg", "--format contradict each other"),
    (2, f"manipulate a.png {ONE} --format jpg -o x.jpeg --scale 1", "more --scale than --attr"),
    (2, "reconstruct a.png -o - --json", "standard output"),
    (2, "reconstruct a.png --overwrite --skip-existing", "exclude"),
    *[(2, f"reconstruct a.png {options}", f"{options}: without -o nothing is written")
      for options in ("--compare", "--skip-existing", "--overwrite", "--no-metadata")],
    (2, "reconstruct a.png --format jpg --sheet s.png", "--format: without -o"),
    (2, "reconstruct a.png --keep-alpha", "--keep-alpha is for .png, .webp, which"),
    (2, "align a.png --keep-alpha -o x.jpg", "--keep-alpha is for .png, .webp, which"),
    (2, "decode a.png --keep-alpha --format gif -o out/", "--keep-alpha is for .png"),
    (2, "reconstruct a.png --keep-exif -o x.gif", "--keep-exif is for .png, .jpg"),
    (2, "encode a.png --stream png", "give - as the one input"),
    *[(2, f"{line} --stream png", "--stream png is for -o -; leave it out") for line in (
        "sample -n 1 -o out/", "sample -n 1 -o x.png", "decode a.png -o out/",
        "interpolate a.png b.png -o out/",
    )],
    (2, "sample -n 1 -o out --report r.txt", "r.txt"),
    (2, "sample -n 1 -o out --report -", "ends in .html"),
    (2, "sample -n 1 -o out --sheet s.gif", "s.gif"),
    (2, "interpolate a.png b.png --fps 25 -o x.png", "are for .gif, .webp"),
    (2, "interpolate a.png b.png --loop -o x.png", "are for .gif, .webp"),
    (2, "interpolate a.png b.png --duration 40 -o folder", "are for .gif, .webp"),
    (2, "interpolate a.png b.png --fps 25 --duration 40 -o x.gif", "say the same"),
    (2, "interpolate a.png b.png --fps 60 -o x.gif", "50 frames a second at most"),
    (2, "interpolate a.png b.png -o x.mov", "can't write .mov here"),
    (2, "interpolate a.png b.png -o x.mp4", "ffmpeg"),
    *[(2, f"encode in -o z --share {share}", "share")
      for share in ("3/2", "a/b", "1/", "1", "1/0")],
    (2, "encode in --share 1/2 -o -", "needs a folder"),
    (2, "encode in --share 1/2 -o z.safetensors", "needs a folder"),
    (2, "encode in --share 1/2 -o o/ --report r.html", "needs a folder"),
    *[(2, f"{line} -o x.png", "is too large: files record numbers below 2^63") for line in (
        f"sample -n 1 --seed {2**63}", f"decode a.png --seed {-(2**63)}",
        f"sample -n 1 --first {2**63 - 1}", f"sample -n 9 --first {2**63 - 9}",
    )],
    # How pictures are taken and trajectories solved
    (2, "reconstruct a.png --device abacus", "can't be used"),
    (2, "reconstruct a.png --solver leapfrog --corrections 1", "leapfrog is exact without"),
    (2, "reconstruct a.png --solver ddpm --corrections 1", "ddpm decodes by chance"),
    (2, "reconstruct a.png --parity pdae --corrections 1",
     "leave solver, spacing and corrections out"),
    # Edits
    (2, "manipulate a.png -o x.png", "name at least one --attr"),
    (2, "manipulate a.png -o x.png --attr smilling=1", "did you mean Smiling?"),
    (2, "manipulate a.png -o x.png --attr smiling", "needs a --scale"),
    (2, "manipulate a.png -o x.png --attr smiling --scale big", "isn't a number"),
    (2, "manipulate none.png -o x/ --attr smiling=sd", "isn't a number"),
    (2, f"manipulate a.png -o x.png {ONE} --scale 1", "more --scale than --attr"),
    (2, "manipulate a.png -o x.png --attr smiling=1,2 --attr blondhair=1,2,3", "equally long"),
    (2, "manipulate none.png -o x/ --attr 5oclockshadow=1sd", "attributes fit"),
    (2, f"manipulate none.png -o x/ {ONE} --keep smiling", "can't move"),
    (2, f"manipulate none.png -o x/ {ONE} --keep smilling", "did you mean Smiling?"),
    (2, "manipulate a.png -o - --attr smiling=+10u", "no number, so it has no units"),
    (2, f"manipulate a.png -o z.safetensors {ONE} --paste-back", "--paste-back makes pictures"),
    (2, f"manipulate a.png -o z.safetensors {ONE} --mask m.png", "--mask makes pictures"),
    *[(2, f"manipulate a.png -o x.png --attr smiling{options}", said) for options, said in (
        ("=0.3 --to 0", "give one of them"),
        (" --to 0 --scale 0.3", "give one of them"),
        (" --attr blond_hair --to 0", "needs a --to"),
        (" --to 0 --to 1", "1 more --to than --attr"),
        (" --to high", "--to 'high' isn't a number"),
        (" --to nan", "--to 'nan' isn't a number"),
        (" --to 0 --attr Smiling --to 1", "ends at one score"),
        (" --to 0 --keep smiling", "ends at one score"),
        (" --to 1u", "is no number"),
    )],
    (2, "manipulate a.png -o x.png --attr '5 o clock shadow' --to 0", "isn't known"),
    *[(2, f"manipulate a.png -o x.png {ONE} --face {options}", said) for options, said in (
        ("0 --align", "isn't largest, all, or a number"),
        ("both --align", "isn't largest, all, or a number"),
        ("2", "--align"),
        ("all --landmarks faces.json", "need a folder"),
    )],
    (2, "attributes fit -m nowhere --with in --without in --labels t.csv", "--labels is for DATA"),
    (2, "attributes fit -m nowhere in --name hat", "--name is for --with"),
    (2, "attributes fit --with in --without in", "2 pictures are in both in and in; leave out"),
    (2, "attributes fit six --labels twins.csv",
     "twins.csv: two attributes can't both be Joy or joy; rename one"),
    (2, "evaluate gap in", "not 1: of a training set only those held out count, unless --whole"),
    (2, "attributes rename smilling x", "did you mean Smiling"),
    (2, "attributes rename smiling 'BLOND HAIR'", "two attributes"),
    (2, "attributes rename smiling a=b", "can't be an attribute's name"),
    # Samples
    *[(code, f"sample -o x.png {options}", said) for code, options, said in (
        (4, "--label x", "takes no labels"),
        (2, "--label x --unconditional", "exclude each other"),
        (2, "--guidance 1,much", "isn't a number"),
        (2, "--classifier x", "--label"),
        (2, "--classifier x --label a --like y", "exclude each other"),
        (4, "--classifier nowhere --label a", "is no classifier"),
        (2, "--classifier x --label a --guidance 2", "--classifier-scale"),
        (2, "--classifier x --label a --classifier-scale 1,x", "'1,x' isn't"),
        (2, "--label a --classifier-scale 2", "of a --classifier"),
        (2, "--unlike x", "--like"),
        (2, "--like x --unconditional", "exclude"),
        (2, "--like in/0.png", "in/0.png is no folder, zip, Parquet file or tar"),
        (3, "--like in/sub/none", "no such folder"),
        (2, "--like in --unlike in", "2 pictures are in both in and in; leave out"),
        (2, "--stream png --grid -o -", "leave one of them out"),
        (2, "--fit pad", "--fit is of the pictures of --like"),
        (3, "-n 500 --columns 500 -o x.webp", "16998x32 pixels are too many for .webp"),
        (3, "-n 250 --guidance 0,1 --columns 1 -o x.webp", "32x16498 pixels are too many"),
        (3, "-n 99999 --grid -o x/", "put fewer pictures into one file"),
        # What the options alone rule out, before a model is looked for
        (2, "-m nowhere --unconditional --guidance 0,1,2", "alone; leave --guidance out"),
        (2, "-m nowhere --unconditional --guidance 1", "alone; leave --guidance out"),
        (2, "-m nowhere --unconditional --guide-from 500 --guide-until 9",
         "leave --guide-from and --guide-until out"),
        (2, "-m nowhere --classifier x --label a --guide-from 500", "leave --guide-from out"),
        (2, "-m nowhere --classifier x --label a --guide-until 0", "leave --guide-until out"),
        (2, "-m nowhere --like in --label a", "exclude each other"),
        (2, "-m nowhere --columns 1 -o x/", "--columns is of one sheet"),
        (2, "-m nowhere --columns 1 --stream png -o -", "--columns is of one sheet"),
    )],
    # Training
    (2, "train dpm none -o run --tracker tensorbord", "no tracker 'tensorbord'; known: "),
    (2, "train dpm none -o run --tracker 'tensorboard, aim'",
     "--tracker aim needs a package: pip install aim"),
    *[(2, f"train dpm in -o run --images 4 --image-size 32 {options}", said) for options, said in (
        ("--batch-size 3 --accumulate 2", "multiple of 2"),
        ("--head-channels 7", "attention heads"),
        ("--image-size 33", "multiple"),
    )],
]  # fmt: skip

# Those that Typer refuses: line, and words of its box.
CHOICES = [
    ("encod", "No such command 'encod'"),
    ("encode - --stream jpg", "'jpg' is not one of 'png'"),
    ("reconstruct a.png --fit magic", "'magic' is not one of 'crop', 'pad', 'stretch'"),
    ("reconstruct a.png --solver euler", "'euler' is not one of 'dpmpp', "),
    ("reconstruct a.png --dtype int3", "'int3' is not one of 'float32', "),
    ("reconstruct a.png --inference-steps 0", "Invalid value for '--inference-steps'"),
    ("interpolate a.png b.png -o x.gif --fps nan", "--fps"),
    ("interpolate a.png a.png -o x.png --mode magic", "'magic' is not one of 'latent', "),
    *[(f"train {stage} none -o run {option} int8", f"'{option}': Value error, 'int8' is not one of")
      for stage, option in (
        ("dpm", "--precision"), ("dpm", "--fit"), ("dpm", "--weights-dtype"), ("diffae", "--betas"),
        ("diffae", "--prediction"), ("autoencoder", "--weighting"),
    )],
]  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Pictures, and a model that knows how the scores of two attributes vary."""
    folder = tmp_path_factory.mktemp("room")
    for name in ("a.png", "b.png"):
        picture().save(folder / name)
    folder_of(folder / "in", 2)
    folder_of(folder / "six", 6)
    rows = ["file,Joy,joy", *(f"{n}.png,{n % 2},{n // 2 % 2}" for n in range(6))]
    (folder / "twins.csv").write_text("\n".join(rows))
    (folder / "faces.json").write_text(json.dumps({"a.png": [FACE, FACE]}))
    own_model(folder / "mine", tiny_folder, **SPREADS)
    return folder


def kept(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in outputs(folder).items() if not name.endswith("lock")}


@pytest.fixture
def refused(pdae: Command, room: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """What is said of a line."""
    monkeypatch.chdir(room)

    def run(line: str, code: int) -> str:
        before = kept(room)
        result = pdae(*shlex.split(line), model="mine")
        assert (result.code, result.out) == (code, b""), result.err
        assert kept(room) == before
        return result.err

    return run


@pytest.mark.parametrize(("code", "line", "words"), REFUSED)
def test_what_cant_be(refused: Refused, code: int, line: str, words: str) -> None:
    said = refused(line, code)
    assert words in said and said.count("\n") == 1


def test_a_strip_that_its_format_cant_hold(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the ends are read, let alone what lies between."""
    monkeypatch.setitem(LONGEST, "JPEG", 300)
    said = refused("interpolate none.png b.png --steps 9 -o x.jpg", 3)
    assert said == "error: 304x32 pixels are too many for .jpg, which takes 300 a side; write png\n"


@pytest.mark.parametrize(("line", "words"), CHOICES)
def test_what_there_is_no_choice_of(refused: Refused, line: str, words: str) -> None:
    assert words in refused(line, 2)
