"""Few-shot conditional generation: rejection, what is learnt from few, and the command."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import pytest
import torch
from conftest import Command, picture, tiny_model
from PIL import Image
from torch import Generator, Tensor

from pdae_cli.diffusion.noise import generator, normal
from pdae_cli.diffusion.sampling import Sampling
from pdae_cli.engine import fewshot
from pdae_cli.engine.fewshot import Likeness, draw, learn, share_with
from pdae_cli.engine.model import Model
from pdae_cli.errors import InputError, UsageError

AXIS = torch.tensor([0.0, 1.0, 0.0])


class Normal:
    """Stands for a model whose z are N(0, I) in three dimensions, and normalised already."""

    def sample_z(self, generators: list[Generator], sampling: Sampling) -> Tensor:
        return normal(generators, (3,))

    def normalise(self, z: Tensor) -> Tensor:
        return z


NORMAL = cast(Model, Normal())


def drawn(likeness: Likeness, count: int) -> Tensor:
    return draw(NORMAL, likeness, [generator(0, n) for n in range(count)], Sampling())


def z_of(count: int, mean: float, key: str) -> Tensor:
    """Draws of N(mean AXIS, I)."""
    return normal([generator(1, key, n) for n in range(count)], (3,)) + mean * AXIS


class TestRejection:
    def test_a_tilted_normal(self) -> None:
        """N(0, 1) exp(z) is N(1, 1); kept with min(1, exp(z - 4)) next to nothing is clipped."""
        z = drawn(Likeness(AXIS, -4.0, True, 0.0, 0.0), 2000)
        assert z.mean(0) == pytest.approx([0, 1, 0], abs=4 / math.sqrt(2000))
        assert z.std(0) == pytest.approx([1, 1, 1], abs=4 / math.sqrt(4000))

    def test_a_logistic_tilt(self) -> None:
        """The density p(z) sigma(3 z - 3) / Z, its mean by quadrature."""
        grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        density = (-grid.square() / 2).exp() * (3 * grid - 3).sigmoid()
        mean = ((density * grid).sum() / density.sum()).item()
        z = drawn(Likeness(3 * AXIS, -3.0, False, 0.0, 0.0), 2000)
        assert z.mean(0) == pytest.approx([0, mean, 0], abs=4 / math.sqrt(2000))

    def test_each_sample_depends_on_its_generator_alone(self) -> None:
        likeness = Likeness(3 * AXIS, -3.0, False, 0.0, 0.0)
        alone = draw(NORMAL, likeness, [generator(0, 7)], Sampling())
        assert torch.equal(drawn(likeness, 12)[7:8], alone)

    def test_what_all_are_like_is_the_first_draw(self) -> None:
        certain = Likeness(0 * AXIS, 1.0, True, 0.0, 0.0)
        assert torch.equal(drawn(certain, 5), normal([generator(0, n) for n in range(5)], (3,)))

    def test_what_none_is_like_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fewshot, "TRIES", 20)
        with pytest.raises(InputError, match="of 20 draws"):
            drawn(Likeness(0 * AXIS, -100.0, True, 0.0, 0.0), 2)


class TestLearning:
    def test_the_share_is_found(self) -> None:
        """Of z from 0.2 N(2, 1) + 0.8 N(-1, 1), with the exact log-odds 3 u - 1.5 on the axis."""
        z = torch.cat([z_of(400, 2.0, "with"), z_of(1600, -1.0, "without")])
        assert share_with(3 * (z @ AXIS) - 1.5) == pytest.approx(0.2, abs=0.03)

    def test_two_kinds(self) -> None:
        """From 60 of each: the latent DPM's z, of which a fifth has it, become nearly all of it."""
        any_ = torch.cat([z_of(200, 2.0, "some"), z_of(800, -1.0, "others")])
        found = learn(z_of(60, 2.0, "like"), z_of(60, -1.0, "unlike"), any_)
        assert found.share == pytest.approx(0.2, abs=0.06) and found.auroc > 0.95
        truth = 3 * (any_ @ AXIS) - 1.5 + math.log(0.2 / 0.8)  # log-odds of having it
        assert (found(any_) - truth.sigmoid()).abs().mean() < 0.08

    def test_one_kind_and_the_unlabelled(self) -> None:
        """p(y | z) is the ratio p(z | y) / p(z) but for a constant, up to 1."""
        any_ = torch.cat([z_of(100, 3.0, "some"), z_of(900, -1.0, "others")])
        found = learn(z_of(60, 3.0, "like"), None, any_)
        kept = found(any_)
        assert kept.max() <= 1 and kept[:100].mean() > 0.5 and kept[100:].mean() < 0.03
        assert found.share == pytest.approx(0.1, abs=0.06)

    def test_one_picture_is_too_few(self) -> None:
        with pytest.raises(UsageError, match="two at least"):
            learn(z_of(1, 0.0, "one"), None, z_of(9, 0.0, "any"))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Bright and dark pictures."""
    for name, colour in (("bright", (250, 240, 250)), ("dark", (10, 0, 10))):
        (tmp_path / name).mkdir()
        for seed in range(6):
            whole = Image.new("RGB", (32, 32), colour)
            mixed = Image.blend(whole, picture(seed, (32, 32)), 0.2)
            mixed.save(tmp_path / name / f"{seed}.png")
    return tmp_path / "bright", tmp_path / "dark"


FAST = ("--inference-steps", 2)


class TestCommand:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fewshot, "UNLABELLED", 32)

    def test_it_writes_what_the_library_makes(
        self, pdae: Command, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        bright, dark = folders
        args = ("sample", "--like", bright, "--unlike", dark, *FAST)
        result = pdae(*args, "-n", 3, "-o", tmp_path / "out", "--json")
        assert result.code == 0, result.err
        assert "6 pictures, told from" in result.err and "AUROC" in result.err
        alone = pdae(*args, "-n", 1, "--first", 2, "-o", tmp_path / "alone")
        assert alone.code == 0, alone.err
        pixels = [
            Image.open(tmp_path / folder / "00002.png").tobytes() for folder in ("out", "alone")
        ]
        assert pixels[0] == pixels[1]

    def test_positives_alone_and_one_sheet(
        self, pdae: Command, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        result = pdae("sample", "--like", folders[0], "-n", 2, *FAST, "-o", tmp_path / "x.png")
        assert result.code == 0 and (tmp_path / "x.png").exists()

    def test_other_pictures_make_the_folder_anew(
        self, pdae: Command, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        args = ("sample", "--like", folders[0], "-n", 1, *FAST, "-o", tmp_path / "out")
        assert pdae(*args).code == 0
        assert "1 unchanged" in pdae(*args).err
        (folders[0] / "0.png").unlink()
        assert "unchanged" not in pdae(*args).err

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (("--unlike", "x"), "--like"),
            (("--like", "x", "--unconditional"), "exclude"),
            (("--like", "{}/0.png"), "several"),
            (("--like", "{}/none"), "no such folder"),
        ],
    )
    def test_failures(
        self,
        pdae: Command,
        folders: tuple[Path, Path],
        tmp_path: Path,
        args: tuple[str, ...],
        said: str,
    ) -> None:
        full = [one.format(folders[0]) for one in args]
        result = pdae("sample", *full, "-o", tmp_path / "x.png")
        assert result.code in (2, 3) and said in result.err
        assert len(result.err.splitlines()) == 1

    def test_a_model_without_latent_dpm(
        self, pdae: Command, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        from pdae_cli.checkpoints import write_model

        write_model(tmp_path / "bare", tiny_model())
        result = pdae(
            "sample", "--like", folders[0], "-o", tmp_path / "x.png", model=tmp_path / "bare"
        )
        assert result.code == 4 and "latent DPM" in result.err
