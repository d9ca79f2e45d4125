"""Pictures say how they were made, and can be made again from that."""

from __future__ import annotations

import json
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
from cli_runs import pixels_of
from conftest import BUNDLED, Command, picture, tiny_model
from PIL import ExifTags, Image

from pdae_cli.checkpoints import write_model
from pdae_cli.cli.redo import _found, _model
from pdae_cli.cli.run.recipes import Recipe
from pdae_cli.errors import InputError, ModelError
from pdae_cli.files import sha256
from pdae_cli.pictures.images import encode_picture, to_pixels, to_tensor
from pdae_cli.pictures.metadata import read_recipe

FAST = ("--inference-steps", "3")


def recipe_of(path: Path) -> dict[str, object]:
    with Image.open(path) as image:
        recipe = read_recipe(image)
    assert recipe is not None
    return recipe


class TestRedo:
    @pytest.mark.parametrize(
        "command",
        [
            ("reconstruct", "a.png", "--compare", "-o", "out.png"),
            ("reconstruct", "a.png", "--random-noise", "--seed", 4, "-o", "out/"),
            ("reconstruct", "a.png", "b.jpg", "-o", "out/", "--fit", "pad"),
            ("manipulate", "a.png", "--attr", "smiling", "--scale", "-0.3,0.5", "-o", "out.png"),
            ("manipulate", "a.png", "--attr", "smiling=0.3", "--attr=blond hair=-1", "-o", "out/"),
            ("interpolate", "a.png", "b.jpg", "--steps", 4, "-o", "out.gif"),
            ("interpolate", "a.png", "b.jpg", "--steps", 3, "--mode", "trajectory", "-o", "out/"),
            ("reconstruct", "a.png", "--random-noise", "--guidance", 0, "-o", "out.png"),
            ("sample", "-n", 3, "--seed", 7, "--guide-from", 0, "-o", "out.png"),
            ("sample", "-n", 3, "--seed", 7, "-o", "out.webp"),
            ("sample", "-n", 3, "--seed", 7, "-o", "out/", "--format", "jpg"),
        ],
    )
    def test_the_same_picture_again(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch,
        command: tuple[object, ...],
    ) -> None:  # fmt: skip
        monkeypatch.chdir(pictures[0].parent)
        assert pdae(*command, *FAST).code == 0
        made = sorted(path for path in Path("out").glob("[!.]*")) or [*Path().glob("out.*")]
        for path in made:
            again = ("-o", f"again{path.suffix}", "--overwrite")
            result = pdae("redo", path, *again, "--json")
            assert result.code == 0, result.err
            assert json.loads(result.text)["same"] is True
            assert pixels_of(f"again{path.suffix}") == pixels_of(path)

    def test_of_a_name_in_capitals(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(pictures[0].parent)
        assert pdae("reconstruct", "a.png", "-o", "B.PNG", *FAST).code == 0
        result = pdae("redo", "B.PNG")
        assert result.code == 0, result.err

    def test_the_new_picture_replaces_nobodys(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It goes where one says, in the old one's format."""
        monkeypatch.chdir(pictures[0].parent)
        assert pdae("reconstruct", "a.png", "-o", "out.png", *FAST).code == 0
        before = Path("a.png").read_bytes()
        result = pdae("redo", "out.png", "-o", "a.png")
        assert result.code == 3 and "a.png exists; pass --overwrite" in result.err
        assert Path("a.png").read_bytes() == before
        assert pdae("redo", "out.png", "-o", "x.jpg").code == 2
        Path("folder").mkdir()
        for _ in range(2):  # the same recipe is ours
            assert pdae("redo", "out.png", "-o", "folder").code == 0
        assert pixels_of("folder/out.png") == pixels_of("out.png")
        result = pdae("redo", "out.png", "-o", "-")
        assert result.code == 0 and pixels_of(BytesIO(result.out)) == pixels_of("out.png")
        assert not Path("-").exists()

    def test_codes_too(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(pictures[0].parent)
        assert pdae("encode", "a.png", "b.jpg", "-o", "z.safetensors", *FAST).code == 0
        assert pdae("decode", "z.safetensors", "-o", "out/").code == 0
        result = pdae("redo", "out/z-b.png")
        assert result.code == 0 and "the same picture again" in result.text

    def test_a_row_of_codes_whose_place_another_has(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its codes tell which it is, also where another row has that name by now."""
        monkeypatch.chdir(pictures[0].parent)
        Path("a.png").rename("0001.png")
        assert pdae("encode", "0001.png", "b.jpg", "-o", "z.safetensors", *FAST).code == 0
        with monkeypatch.context() as patch:
            patch.setattr("pdae_cli.cli.run.loading.own_names", lambda sources: None)
            assert pdae("decode", "z.safetensors", "-o", "out/").code == 0
        assert Path("out/z-0001.png").exists() and pdae("redo", "out/z-0001.png").code == 0

    def test_the_input_is_found_by_its_digest(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        assert pdae("reconstruct", pictures[0], "-o", out, *FAST).code == 0
        assert str(pictures[0].parent) not in json.dumps(recipe_of(out))  # nobody's folders
        missing = pdae("redo", out)
        assert missing.code == 3 and "--input" in missing.err
        elsewhere = tmp_path / "elsewhere" / "deep" / "other name.png"
        elsewhere.parent.mkdir(parents=True)
        shutil.copy(pictures[0], elsewhere)
        assert pdae("redo", out, "--input", tmp_path / "elsewhere").code == 0
        assert pdae("redo", out, "--input", elsewhere).code == 0
        picture(7).save(elsewhere)
        assert pdae("redo", out, "--input", elsewhere).code == 3

    def test_the_input_is_found_in_a_zip_and_a_table(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By the name that the recipe has, and where --input says what it is part of."""
        monkeypatch.chdir(pictures[0].parent)
        with zipfile.ZipFile("few.zip", "w") as file:
            for one in pictures[:2]:
                file.write(one, f"sub/{one.name}")
        assert pdae("reconstruct", "few.zip", "-o", "out/", *FAST).code == 0
        assert pdae("encode", "few.zip", "-o", "z.parquet", *FAST).code == 0
        assert pdae("decode", "z.parquet", "-o", "out/").code == 0
        for path in ("out/sub/a.png", "out/sub/b.png", "out/z-0001.png"):
            assert pdae("redo", path, "-o", "again.png", "--overwrite").code == 0
            assert pixels_of("again.png") == pixels_of(path)
        elsewhere = Path("elsewhere")
        elsewhere.mkdir()
        for name in ("few.zip", "z.parquet"):
            Path(name).rename(elsewhere / name)
        assert pdae("redo", "out/sub/a.png").code == 3
        assert pdae("redo", "out/sub/a.png", "--input", elsewhere / "few.zip").code == 0
        assert pdae("redo", "out/z-0001.png", "--input", elsewhere).code == 0

    def test_inputs_of_one_name_in_two_zips(
        self, pdae: Command, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is kept of it then is made of what it says, so that it can be made again, too."""
        monkeypatch.chdir(pictures[0].parent)
        for folder, path in zip(("one", "two"), pictures[:2], strict=True):
            Path(folder).mkdir()
            path.rename(f"{folder}/x.png")
        line = ("interpolate", "one/x.png", "two/x.png", "--steps", 3, "-o", "row.png", *FAST)
        assert pdae(*line).code == 0
        for folder in ("one", "two"):
            with zipfile.ZipFile(f"{folder}.zip", "w") as file:
                file.write(f"{folder}/x.png")
            shutil.rmtree(folder)
        zips = ("--input", "one.zip", "--input", "two.zip")
        result = pdae("redo", "row.png", *zips, "-o", "again.png")
        assert result.code == 0, result.err
        assert pdae("redo", "again.png", *zips).code == 0

    @pytest.mark.parametrize("name", ["..", "../..", ".", "/", "", "sub"])
    def test_folders_that_a_recipe_names_arent_searched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """A stranger may have written it; where to look is the user's choice."""
        (tmp_path / "here" / "sub").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setattr("pdae_cli.cli.redo.sha_of", None)
        for path in (tmp_path, Path(), Path("sub")):
            picture(0).save(path / "other.png")
        with pytest.raises(InputError, match="isn't here; say where"):
            _found(name, "0" * 64, Path("x.png"), [], tmp_path / "into")

    def test_options_that_the_command_doesnt_take(self, pdae: Command, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        assert pdae("sample", "-n", 1, "--seed", 7, "-o", out, *FAST).code == 0
        recipe = recipe_of(out)
        options = {**dict(recipe["options"]), "frames": "all"}  # type: ignore[call-overload]
        with Image.open(out) as image:
            out.write_bytes(encode_picture(to_tensor(image), ".png", recipe | {"options": options}))
        result = pdae("redo", out)
        assert result.code == 3 and "records no frames" in result.err

    def test_a_device_that_isnt_here_is_the_users_own(self, pdae: Command, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        assert pdae("sample", "-n", 1, "-o", out, *FAST).code == 0
        result = pdae("redo", out, "--device", "abacus")
        assert result.code == 2 and "device 'abacus' can't be used" in result.err
        assert result.err.count("\n") == 1 and "recipe" not in result.err

    def test_another_model_is_named(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        assert pdae("reconstruct", pictures[0], "-o", out, *FAST).code == 0
        other = tmp_path / "other"
        write_model(other, tiny_model(seed=5))
        result = pdae("redo", out, "--input", pictures[0], "-m", other)
        assert result.code == 4 and "was made with weights" in result.err

    @pytest.mark.parametrize(
        "recipe, message",
        [
            (None, "no recipe"),
            ({"command": "reconstruct"}, "another version"),
            ({"command": "train", "options": {}, "model": "m", "digest": "d", "sources": []},
             "can't be done again"),
            ({"command": "sample", "options": {}, "model": "evil/hub", "digest": "d",
              "sources": []}, "digest"),
            ({"command": "sample", "options": {"output": "/tmp/x", "solver": "--output=/tmp/x"},
              "model": "m", "digest": "d", "sources": []}, "records no output"),
            ({"command": "sample", "options": {"solver": "--output=/tmp/x"}, "model": "m",
              "digest": "d", "sources": []}, "is not one of"),
        ],
    )  # fmt: skip
    def test_strangers_recipes(
        self, pdae: Command, tmp_path: Path, recipe: dict[str, object] | None, message: str
    ) -> None:
        path = tmp_path / "x.png"
        path.write_bytes(encode_picture(to_pixels(torch.zeros(3, 8, 8)), ".png", recipe))
        result = pdae("redo", path)
        assert result.code in (3, 4) and len(result.err.splitlines()) <= 2
        assert message in result.err or "digest" in message

    def test_a_strangers_model_isnt_fetched(self) -> None:
        with pytest.raises(ModelError, match="--model"):
            _model(Recipe("sample", {}, "evil/hub", "", [], None, None, None), None)


class TestMetadata:
    def test_no_metadata(self, pdae: Command, pictures: list[Path], tmp_path: Path) -> None:
        for suffix in ("png", "jpg", "webp"):
            out = tmp_path / f"out.{suffix}"
            command = ("reconstruct", pictures[0], "-o", out, "--no-metadata", *FAST)
            assert pdae(*command).code == 0
            assert b"pdae" not in out.read_bytes()

    def test_exif_is_copied_only_when_asked(self, pdae: Command, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Model] = "Camera 3000"
        exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 8.0, 15.0)
        source = tmp_path / "photo.jpg"
        picture().save(source, exif=exif)
        plain, kept = tmp_path / "plain.jpg", tmp_path / "kept.jpg"
        assert pdae("reconstruct", source, "-o", plain, *FAST).code == 0
        assert pdae("reconstruct", source, "-o", kept, "--keep-exif", *FAST).code == 0
        assert b"Camera 3000" not in plain.read_bytes() and b"Camera 3000" in kept.read_bytes()
        with Image.open(plain) as image:
            assert not image.getexif().get_ifd(ExifTags.IFD.GPSInfo)


class TestAlphaAndFrames:
    def test_transparency_comes_back_when_asked(self, pdae: Command, tmp_path: Path) -> None:
        image = picture(size=(32, 32), mode="RGBA")
        image.putalpha(Image.linear_gradient("L").resize((32, 32)))
        image.save(tmp_path / "a.png")
        out = tmp_path / "out.png"
        command = ("reconstruct", tmp_path / "a.png", "-o", out, "--overwrite", *FAST)
        assert pdae(*command).code == 0
        with Image.open(out) as made:
            assert made.mode == "RGB"
        assert pdae(*command, "--keep-alpha", "--compare").code == 0
        with Image.open(out) as made:
            assert made.size == (64, 32) and made.mode == "RGBA"
            for left in (0, 32):
                part = made.crop((left, 0, left + 32, 32)).getchannel("A")
                assert part.tobytes() == image.getchannel("A").tobytes()

    def test_animations(self, pdae: Command, tmp_path: Path) -> None:
        frames = [picture(number, (32, 32)) for number in range(3)]
        source = tmp_path / "a.gif"
        frames[0].save(source, save_all=True, append_images=frames[1:])
        command = ("encode", source, "--no-noise", "-o")
        first = pdae(*command, tmp_path / "first")
        assert first.code == 0 and "--frames all" in first.err
        assert [p.name for p in (tmp_path / "first").glob("*.s*")] == ["a.safetensors"]
        every = pdae(*command, tmp_path / "all", "--frames", "all")
        assert every.code == 0 and every.err == ""
        names = sorted(p.name for p in (tmp_path / "all").glob("*.s*"))
        assert names == [f"a-{number:04d}.safetensors" for number in range(3)]
        assert "3 unchanged" in pdae(*command, tmp_path / "all", "--frames", "all").err


def test_the_recorded_model_goes_before_the_environments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PDAE_MODEL is for what isn't here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PDAE_MODEL", "theirs")
    for name, found in (("faces64", "faces64"), ("elsewhere", "theirs")):
        recipe = Recipe("reconstruct", {}, name, "", [], None, None, None, [])
        assert _model(recipe, None) == found
        assert _model(recipe, "given") == "given"


def test_of_models_of_one_name_the_weights_tell(
    pdae: Command, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe has the last part of a model's name."""
    monkeypatch.chdir(tmp_path)
    line = ("reconstruct", pictures[0], "-o", "out.png", *FAST)
    for seed, folder in ((4, "runs/mine"), (5, "mine")):
        write_model(Path(folder), tiny_model(seed=seed))
    assert pdae(*line, model="runs/mine").code == 0
    again = ("redo", "out.png", "--input", pictures[0])
    assert pdae(*again, model="runs/mine").code == 0
    Path("mine").rename("faces64")
    shutil.move("runs/mine", "mine")
    assert pdae(*again, model="faces64").code == 0
    bundled = Recipe(
        "decode", {}, "faces64", sha256(BUNDLED / "model.safetensors"), [], *[None] * 3
    )
    assert Path(_model(bundled, None)).samefile(BUNDLED)
    shutil.rmtree("mine")
    result = pdae(*again, model="faces64")
    assert result.code == 4 and "faces64 has" in result.err and "--model" in result.err
