"""pdae attributes and manipulate: scales in standard deviations, kept scores, found directions."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import own_model, records
from conftest import Command, picture
from filelock import FileLock
from PIL import Image

from pdae_cli.checkpoints import change_attributes, read_attributes, write_attributes
from pdae_cli.checkpoints.native import LOCK
from pdae_cli.cli.manipulate import edits, scales
from pdae_cli.engine.attributes import Attributes, Scale
from pdae_cli.engine.codes import from_bytes
from pdae_cli.engine.model import Model
from pdae_cli.errors import InputError, UsageError

FAST = ("--inference-steps", "2", "--solver", "ddim")


@pytest.fixture
def mine(tmp_path: Path, tiny_folder: Path) -> Path:
    """A model folder of one's own, which knows how the score of Smiling varies."""
    return own_model(tmp_path / "mine", tiny_folder, Smiling=(0.5, 2.0))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures, of which those with even numbers are red."""
    folder = tmp_path / "photos"
    for number in range(20):
        plain = Image.new("RGB", (32, 32), "blue" if number % 2 else "red")
        path = folder / ("without" if number % 2 else "with") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(picture(number, (32, 32)), plain, 0.7).save(path)
    return folder


class TestManipulate:
    def edit(self, pdae: Command, mine: Path, source: Path, *args: object) -> dict[str, Any]:
        out = ("-o", source.with_suffix(".safetensors"), "--overwrite")
        result = pdae("manipulate", source, *args, "--json", *out, *FAST, model=mine)
        assert result.code == 0, result.err
        return records(result.text)[0]

    @pytest.mark.parametrize("count", [1.5, -1])
    def test_deviations_move_the_score_so_far(
        self, pdae: Command, mine: Path, pictures: list[Path], count: float
    ) -> None:
        one = self.edit(pdae, mine, pictures[0], f"--attr=smiling={count}sd")
        report = one["attributes"]["Smiling"]
        assert (report["scale"], report["unit"]) == (count, "sd")
        assert report["after"] - report["before"] == pytest.approx(2 * count, abs=1e-4)
        assert report["before_sd"] == pytest.approx((report["before"] - 0.5) / 2)
        assert report["after_sd"] - report["before_sd"] == pytest.approx(count, abs=1e-4)

    def test_a_row_of_deviations(self, pdae: Command, mine: Path, pictures: list[Path]) -> None:
        row = pictures[0].parent / "row.png"
        args = ("--attr", "smiling", "--scale=-1sd,0,1sd", "-o", row, "--json", *FAST)
        result = pdae("manipulate", pictures[0], *args, model=mine)
        report = records(result.text)[0]["attributes"]["Smiling"]
        assert report["scale"] == [-1, 0, 1] and report["unit"] == "sd"
        change = [after - report["before_sd"] for after in report["after_sd"]]
        assert change == pytest.approx([-1, 0, 1], abs=1e-4)
        with Image.open(row) as image:
            assert image.size == (96, 32)

    def test_kept_scores_stay(self, pdae: Command, mine: Path, pictures: list[Path]) -> None:
        smile = ("--attr", "smiling=0.5")
        free = self.edit(pdae, mine, pictures[0], *smile)
        assert "kept" not in free
        keep = ("--keep", "blond hair", "--keep", "5 o clock shadow")
        for scale in ("0.5", "1.5sd"):
            one = self.edit(pdae, mine, pictures[0], "--attr", f"smiling={scale}", *keep)
            assert list(one["kept"]) == ["Blond_Hair", "5_o_Clock_Shadow"]
            for report in one["kept"].values():
                assert report["after"] == pytest.approx(report["before"], abs=1e-5)
            report = one["attributes"]["Smiling"]
            assert report["after"] > report["before"] + 0.1

    def test_what_people_read(self, pdae: Command, mine: Path, pictures: list[Path]) -> None:
        edit = ("--attr", "smiling=1sd", "--attr", "blond hair=0.1", "--keep", "5oclockshadow")
        out = pictures[0].with_suffix(".webp")
        text = pdae("manipulate", pictures[0], *edit, "-o", out, *FAST, model=mine).text
        assert " sd)  Blond_Hair" in text and "kept 5_o_Clock_Shadow" in text

    def test_scales(self) -> None:
        assert scales("-0.3,0,0.3") == [Scale(-0.3), Scale(0), Scale(0.3)]
        assert scales("-1sd, 0,1sd") == [Scale(-1, "sd"), Scale(0, "sd"), Scale(1, "sd")]
        assert scales("+10u") + scales("-5 u,0") == [Scale(10, "u"), Scale(-5, "u"), Scale(0, "u")]
        for wrong in ("", "x", "1sd,1", "nan", "infsd", "1 sd sd", "1,,2", "u", "1u,1sd", "1ud"):
            with pytest.raises(UsageError, match="--scale"):
                scales(wrong)
        assert edits(["a=1sd", "b=0,1"], []) == [
            [("a", Scale(1, "sd")), ("b", Scale(0))],
            [("a", Scale(1, "sd")), ("b", Scale(1))],
        ]


class TestFit:
    def test_twenty_pictures_in_two_folders(
        self, pdae: Command, mine: Path, photos: Path, pictures: list[Path]
    ) -> None:
        """It can be used in deviations at once; that few held-out pictures tell little is said."""
        folders = ("--with", photos / "with", "--without", photos / "without", "--name", "Redness")
        result = pdae("attributes", "fit", *folders, "--json", "--decay", 0.5, model=mine)
        (record,) = records(result.text)
        assert result.code == 0 and "too few pictures are held out" in result.err
        kept = records(pdae("attributes", "list", "--json", model=mine).text)
        assert record["decay"] == kept[-1]["decay"] == 0.5 and "decay" not in kept[0]
        assert record["train_with"] + record["train_without"] + record["held_out"] == 20
        assert set(record["correlations"]) == {"Smiling", "Blond_Hair", "5_o_Clock_Shadow"}
        assert all(-1.0001 < one < 1.0001 for one in record["correlations"].values())
        scores = []
        for path in (photos / "with" / "0.png", photos / "without" / "1.png"):
            args = ("--json", *FAST, "-o", path.with_suffix(".safetensors"))
            edited = pdae("manipulate", path, "--attr", "redness=1sd", *args, model=mine)
            scores.append(records(edited.text)[0]["attributes"]["Redness"])
            assert scores[-1]["after_sd"] - scores[-1]["before_sd"] == pytest.approx(1, abs=1e-3)
        assert scores[0]["before"] > scores[1]["before"]

    def label(self, photos: Path, more: str = "") -> None:
        rows = [f"file,split,Warm{more and ',Constant'}"]
        for number in range(20):
            kind = "without" if number % 2 else "with"
            part = "val" if number > 7 else "train"
            rows.append(f"{kind}/{number}.png,{part},{1 - number % 2}{more}")
        (photos / "labels.csv").write_text("\n".join(rows))

    def test_labels_that_tell_nothing_are_left_out(
        self, pdae: Command, mine: Path, photos: Path
    ) -> None:
        self.label(photos, ",1")
        result = pdae("attributes", "fit", photos, "--json", model=mine)
        assert [one["attribute"] for one in records(result.text)] == ["Warm"]
        assert "have it: Constant" in result.err
        constant = "\n".join(f"with/{n}.png,1" for n in range(0, 20, 2))
        (photos / "labels.csv").write_text(f"file,Constant\n{constant}")
        assert pdae("attributes", "fit", photos, model=mine).code == 2

    def test_what_people_read(self, pdae: Command, mine: Path, photos: Path) -> None:
        self.label(photos)
        result = pdae("attributes", "fit", photos, model=mine)
        assert result.code == 0 and "warning" not in result.err
        for words in ("Warm  AUROC", "balanced accuracy", "on 12 held out", "; goes with "):
            assert words in result.text
        assert result.text.count("+") + result.text.count("-") == 3  # correlations
        assert "balanced accuracy" in pdae("attributes", "list", model=mine).text


class TestNumbers:
    def label(self, photos: Path) -> None:
        """Age goes with red and blue, as far as the pictures tell."""
        rows = ["file;split;Warm;age (years)"]
        for number in range(20):
            kind, age = ("without", 60) if number % 2 else ("with", 20)
            part = "val" if number > 7 else "train"
            rows.append(f"{kind}/{number}.png;{part};{1 - number % 2};{age + number},5")
        (photos / "labels.csv").write_text("\n".join(rows))

    def test_a_number_beside_an_attribute(
        self, pdae: Command, mine: Path, photos: Path, pictures: list[Path]
    ) -> None:
        """It is learnt, listed, and moved by its units and by deviations."""
        self.label(photos)
        result = pdae("attributes", "fit", photos, "--json", model=mine)
        assert result.code == 0 and result.err == "", result.err
        warm, age = records(result.text)
        assert (warm["attribute"], age["attribute"], age["unit"]) == ("Warm", "age", "years")
        assert (age["train"], age["held_out"]) == (8, 12) and age["correlation"] > 0.5
        assert age["correlations"]["Warm"] < -0.5
        listed = pdae("attributes", "list", model=mine).text
        assert "mean error" in listed and "on 12 held out; a number, in years: 44 ± 2" in listed
        assert listed == pdae("manipulate", "--list", model=mine).text
        sd = age["score_sd"]
        for scale, unit, moved in (("+10u", "u", 10), ("-5u", "u", -5), ("1sd", "sd", sd)):
            args = ("--attr", f"age={scale}", "-o", photos / "z.safetensors", "--overwrite")
            edited = pdae("manipulate", pictures[0], *args, "--json", *FAST, model=mine)
            report = records(edited.text)[0]["attributes"]["age"]
            assert report["unit"] == unit
            assert report["after"] - report["before"] == pytest.approx(moved, abs=1e-2)


@pytest.mark.parametrize("command", ["fit", "discover"])
def test_no_more_pictures_are_encoded_at_once_than_told(
    pdae: Command, mine: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    asked, encode_z = [], Model.encode_z

    def watched(self: Model, x_0: Any) -> Any:
        asked.append(len(x_0))
        return encode_z(self, x_0)

    monkeypatch.setattr(Model, "encode_z", watched)
    folders = ("--with", photos / "with", "--without", photos / "without")
    data = folders if command == "fit" else (photos, "-k", 2)
    assert pdae("attributes", command, *data, "--batch-size", 3, model=mine).code == 0
    assert max(asked) == 3 and sum(asked) == 20


class TestKept:
    """What a model has is never lost in silence."""

    def test_old_and_new_figures_where_one_is_replaced(
        self, pdae: Command, mine: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        args = ("--with", photos / "with", "--without", photos / "without", "--name", "smiling")
        path = mine / "attributes.safetensors"
        before = path.read_bytes()
        with monkeypatch.context() as patched:  # nothing is computed first
            patched.setattr("pdae_cli.training.latent.encode_all", None)
            result = pdae("attributes", "fit", *args, model=mine)
        assert result.code == 3 and result.err.count("\n") == 1 and path.read_bytes() == before
        assert "has 1 of them already (Smiling" in result.err and "--overwrite" in result.err
        result = pdae("attributes", "fit", *args, "--overwrite", "--json", model=mine)
        (record,) = records(result.text)
        assert result.code == 0 and record["replaced"] == {"score_mean": 0.5, "score_sd": 2.0}
        assert set(read_attributes(path).names) == {"smiling", "Blond_Hair", "5_o_Clock_Shadow"}
        again = pdae("attributes", "fit", *args, "--overwrite", model=mine)
        assert f"; was AUROC {record['auroc']:.3f}" in again.text

    def test_one_that_came_meanwhile(
        self, pdae: Command, mine: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While another command encodes, it isn't replaced, and what else came is kept."""
        from pdae_cli.training.latent import encode_all

        args = ("--with", photos / "with", "--without", photos / "without", "--name", "hat")
        came = {"as": "Glasses"}

        def meanwhile(*given: Any) -> Any:
            known = read_attributes(mine / "attributes.safetensors")
            if "Blond_Hair" in known.names:
                write_attributes(mine, known.renamed("blond hair", came["as"]))
            return encode_all(*given)

        monkeypatch.setattr("pdae_cli.training.latent.encode_all", meanwhile)
        assert pdae("attributes", "fit", *args, model=mine).code == 0
        names = read_attributes(mine / "attributes.safetensors").names
        assert set(names) == {"Smiling", "Glasses", "5_o_Clock_Shadow", "hat"}
        known = read_attributes(mine / "attributes.safetensors").without(["hat"])
        write_attributes(mine, known.renamed("glasses", "Blond_Hair"))
        came["as"] = "HAT"
        result = pdae("attributes", "fit", *args, model=mine)
        assert result.code == 3 and "has 1 of them already (HAT" in result.err

    def test_what_isnt_finite_never_replaces_what_is(self, mine: Path) -> None:
        path = mine / "attributes.safetensors"
        before, known = path.read_bytes(), read_attributes(path)
        known.weight[0, 0] = torch.nan
        with pytest.raises(InputError, match=r"isn't finite, so .* stays as it is"):
            change_attributes(mine, lambda _: known)
        assert path.read_bytes() == before and "finite" not in (mine / "README.md").read_text()

    def test_changes_at_once_wait_for_each_other(
        self, pdae: Command, mine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of many none is lost; one that waits for too long is refused in a line."""
        one = read_attributes(mine / "attributes.safetensors").without(["smiling", "blond hair"])
        more = [one.renamed(one.names[0], f"hat {number}") for number in range(16)]

        def add(other: Attributes) -> None:
            def change(known: Attributes | None) -> Attributes:
                assert known is not None
                time.sleep(0.002)
                return known.merged(other)

            change_attributes(mine, change)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add, more))
        names = read_attributes(mine / "attributes.safetensors").names
        assert set(names[3:]) == {f"hat {number}" for number in range(16)}
        monkeypatch.setattr("pdae_cli.checkpoints.native.PATIENCE", 0.05)
        with FileLock(mine / LOCK):
            result = pdae("attributes", "rename", "smiling", "Joy", model=mine)
        assert result.code == 3 and "another process changes" in result.err
        assert result.err.count("\n") == 1


class TestDiscover:
    def test_directions_of_pictures_with_a_sheet(
        self, pdae: Command, mine: Path, photos: Path, tmp_path: Path
    ) -> None:
        sheet = tmp_path / "sheet.png"
        args = (photos, "-k", 3, "-o", sheet, "--json", *FAST)
        result = pdae("attributes", "discover", *args, model=mine)
        found = records(result.text)
        assert result.code == 0, result.err
        assert [one["attribute"] for one in found] == ["pca_1", "pca_2", "pca_3"]
        shares = [one["explained"] for one in found]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
        kept = read_attributes(mine / "attributes.safetensors").names
        assert kept == ["Smiling", "Blond_Hair", "5_o_Clock_Shadow", "pca_1", "pca_2", "pca_3"]
        with Image.open(sheet) as image:
            assert image.width > 7 * 32 and image.height > 3 * 32
        again = pdae("attributes", "discover", *args, model=mine)
        assert again.code == 3 and "--overwrite" in again.err
        assert "% of the variance of 20 codes" in pdae("attributes", "list", model=mine).text

    def test_codes_do_as_well_as_their_pictures(
        self, pdae: Command, mine: Path, photos: Path, tmp_path: Path
    ) -> None:
        """To within how the two ways of batching round; z alone is shown with fresh noise."""
        pytest.importorskip("pyarrow")
        codes, sheet = tmp_path / "z.safetensors", tmp_path / "s.png"
        table = codes.with_suffix(".parquet")
        for out in (codes, table):
            assert pdae("encode", "-r", photos, "--no-noise", "-o", out, model=mine).code == 0
        z = from_bytes(codes.read_bytes(), "z")
        shares = []
        for data in (photos, codes, table):
            args = (data, "-k", 2, "--json", "-o", sheet, "--overwrite", *FAST)
            result = pdae("attributes", "discover", *args, model=mine)
            assert result.code == 0, result.err
            shares.append([one["explained"] for one in records(result.text)])
        assert len(z) == 20 and shares[0] == pytest.approx(shares[1], rel=1e-3)
        assert shares[1] == shares[2]

    def test_a_picture_of_ones_choice(
        self, pdae: Command, mine: Path, photos: Path, pictures: list[Path], tmp_path: Path
    ) -> None:
        sheets = [tmp_path / f"{number}.png" for number in range(2)]
        for of, sheet in zip(pictures, sheets, strict=False):
            args = (photos, "-k", 1, "-o", sheet, "--picture", of, "-q", *FAST)
            assert pdae("attributes", "discover", *args, model=mine).code == 0
        assert sheets[0].read_bytes() != sheets[1].read_bytes()

    def test_directions_found_before_make_room_and_named_ones_stay(
        self, pdae: Command, mine: Path, photos: Path
    ) -> None:
        assert pdae("attributes", "discover", photos, "-k", 3, model=mine).code == 0
        assert pdae("attributes", "rename", "pca_2", "Light", model=mine).code == 0
        assert pdae("attributes", "discover", photos, "-k", 1, model=mine).code == 0
        names = read_attributes(mine / "attributes.safetensors").names
        assert names[3:] == ["Light", "pca_1"]

    def test_refusals(
        self, pdae: Command, mine: Path, photos: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        before = (mine / "attributes.safetensors").read_bytes()
        for args, words in (
            ((photos, "-k", 7), "vary in 6 directions"),
            ((photos, "-o", tmp_path / "s.jpg"), "is a .png"),
            ((photos, "-k", 0), "-k"),
            ((photos, "--picture", photos), "give one as -o"),
        ):
            result = pdae("attributes", "discover", *args, *FAST, model=mine)
            assert result.code == 2 and words in result.err
        assert pdae("attributes", "discover", tmp_path / "none", model=mine).code == 3
        monkeypatch.setattr("pdae_cli.training.latent.encode_all", None)  # it is looked for first
        args = (photos, "-o", tmp_path / "s.png", "--picture", "none.png")
        assert pdae("attributes", "discover", *args, model=mine).code == 3
        assert (mine / "attributes.safetensors").read_bytes() == before


class TestRename:
    def test_names_change_and_all_else_stays(self, pdae: Command, mine: Path) -> None:
        assert pdae("attributes", "rename", "smiling", "Joy", model=mine).code == 0
        result = pdae("attributes", "list", "--json", model=mine)
        joy, *others = records(result.text)
        assert (joy["attribute"], joy["score_mean"], joy["score_sd"]) == ("Joy", 0.5, 2.0)
        assert [one["attribute"] for one in others] == ["Blond_Hair", "5_o_Clock_Shadow"]


@pytest.mark.parametrize("command", ["fit", "discover"])
def test_a_card_that_cant_tell_of_them_is_refused_before_the_work(
    pdae: Command, mine: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("pdae_cli.training.latent.encode_all", None)
    (mine / "README.md").write_text("# Mine\n<!-- pdae -->")
    result = pdae("attributes", command, photos, model=mine)
    assert result.code == 4 and "README.md can't be renewed" in result.err


@pytest.mark.parametrize(
    "args",
    [
        ("list",), ("rename", "smiling", "Joy"), ("remove", "smiling"), ("fit", "DATA"),
        ("discover", "DATA"),
    ],
)  # fmt: skip
def test_damaged_files_and_options_that_arent_read_are_refused(
    pdae: Command, mine: Path, photos: Path, args: tuple[str, ...]
) -> None:
    """In one line that names them."""
    path, given = mine / "attributes.safetensors", [photos if a == "DATA" else a for a in args]
    if args[0] != "discover":
        assert pdae("attributes", *given, "--seed", "1", model=mine).code == 2
    path.write_bytes(path.read_bytes()[:-3])
    result = pdae("attributes", *given, model=mine)
    assert result.code == 4 and result.err.count("\n") == 1 and str(path) in result.err
