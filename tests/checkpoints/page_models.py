"""The sources that docs/checkpoints.md's commands name, in small."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

from conftest import ROOT, picture
from foreign_models import ADM_STYLE, guided, pipeline
from test_foreign_compvis import checkpoint


def all_sources(here: Path) -> None:
    """Make all of them below a folder."""
    unet = pipeline(here / "pipe", ADM_STYLE | {"sample_size": 32})
    unet.save_pretrained(str(here / "run" / "checkpoint-500" / "unet_ema"))
    shutil.copy(here / "pipe" / "scheduler" / "scheduler_config.json", here / "sched.json")
    golden = ROOT / "tests" / "golden"
    for ours, theirs in (("pdae", "pdae-release"), ("diffae", "checkpoints")):
        shutil.copytree(golden / ours, here / theirs)
        for path in (here / theirs).rglob("*.xz"):
            path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
    guided(here / "guided")
    flags = json.loads((here / "guided" / "model_flags.json").read_text())
    (here / "flags.txt").write_text(" ".join(f"--{k} {v}" for k, v in flags.items()))
    shutil.move(here / "guided" / "ema.pt", here / "imagenet.pt")
    checkpoint(here / "ldm" / "celeba256")
    (here / "photos").mkdir()
    for seed in range(4):
        picture(seed, (32, 32)).save(here / "photos" / f"{seed}.png")
