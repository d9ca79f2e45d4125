"""Pictures that aren't square lie in the frame as those did that z was learnt from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Command, picture, tiny_model
from PIL import Image, ImageOps

from pdae_cli.checkpoints import read_attributes, write_model


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("command", ["fit", "discover"])
def test_directions_are_of_the_models_own_frame(
    command: str, fit: str, pdae: Command, tmp_path: Path
) -> None:
    """What is learnt of wide pictures is what is learnt of them once they are square."""
    model = tiny_model()
    model.attributes = None
    run = {"stage": "autoencoder", "options": {"fit": fit}}
    model.config = replace(model.config, training=(run,))
    found = []
    for shape in ("wide", "square"):
        folder, data = tmp_path / shape, tmp_path / f"{shape}-data"
        write_model(folder, model)
        for number in range(16):
            image: Image.Image = picture(number, (48, 32))
            if shape == "square":
                way = ImageOps.pad if fit == "pad" else ImageOps.fit
                image = way(image, (32, 32), Image.Resampling.LANCZOS)
            path = data / ("with" if number % 2 else "without") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        args = (data, "-k", 2)
        if command == "fit":
            args = ("--with", data / "with", "--without", data / "without", "--name", "odd")
        assert pdae("attributes", command, *args, model=folder).code == 0
        found.append(read_attributes(folder / "attributes.safetensors").weight)
    assert torch.equal(*found)
