"""Tables of labels: read however people write them, or refused in a line that says where."""

from __future__ import annotations

import json
import math
import unicodedata
import zipfile
from pathlib import Path

import pytest

from pdae_cli.errors import InputError
from pdae_cli.pictures.listing import list_pictures
from pdae_cli.training import delimited
from pdae_cli.training.labels import OWN, Labels, find_labels, read_labels

NAMES = [f"{n:03d}.png" for n in range(6)]
HAT, OLD = [1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1, 0]


def table(cut: str, hat: str = "{}", end: str = "\n", more: str = "") -> str:
    """The two attributes of NAMES, cells cut by `cut`."""
    rows = [("file", "Hat", "Old")]
    rows += [(n, hat.format(a), str(b)) for n, a, b in zip(NAMES, HAT, OLD, strict=True)]
    return end.join(cut.join(row) + more for row in rows) + end


def read(folder: Path, text: str | bytes, name: str = "labels.csv") -> Labels:
    """The labels of NAMES by a file in the folder."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    found = find_labels(folder, folder / name, NAMES)
    assert found is not None
    return found


CELEBA = "6\nHat Old \n" + "".join(
    f"{n} {2 * a - 1:>2} {2 * b - 1:>2}\n" for n, a, b in zip(NAMES, HAT, OLD, strict=True)
)
WAYS = {
    "commas": table(","),
    "semicolons": table(";"),
    "tabs": table("\t"),
    "blanks": table("  "),
    "a blank behind commas": table(", "),
    "a byte order mark": b"\xef\xbb\xbf" + table(",").encode(),
    "CRLF": table(",", end="\r\n"),
    "CR": table(",", end="\r"),
    "UTF-16": table("\t").encode("utf-16"),
    "Excel's first line": "sep=;\r\n" + table(";", end="\r\n"),
    "its first line, quoted": '"sep=,"\n' + table(","),
    "a comma at each end": table(",", more=","),
    "commas at the rows' ends": table(",", more=",").replace("Old,", "Old", 1),
    "pandas' numbers": table(",", "{}.0"),
    "quotes": '"file","Hat","Old"\n' + table(",", '"{}"').partition("\n")[2],
    "empty lines": "\n" + table(",").replace("\n", "\n\n") + ",,\n",
    "an index": "".join(
        f"{number},{line}\n" if number else f",{line}\n"
        for number, line in enumerate(table(",").splitlines())
    ),
    "truths": table(",").replace(",1,", ",True,").replace(",0,", ",FALSE,"),
    "yes and no": table(",").replace(",1,", ",yes,").replace(",0,", ",No,"),
    "CelebA": CELEBA,
    "R": table(" ").replace("file ", ""),
    "names behind": "".join(
        f"{hat},{old},{name}\n" for name, hat, old in (x.split(",") for x in table(",").split())
    ),
    "Windows' paths": table(",").replace("\n0", "\n.\\img\\0"),
    "absolute paths": table(",").replace("\n0", "\n/home/me/0"),
    "without suffix": table(",").replace(".png", ""),
    "another suffix": table(",").replace(".png", ".JPG"),
    "another case": table(",").replace(".png", ".PNG"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_table_may_be_written_so(way: str, tmp_path: Path) -> None:
    labels = read(tmp_path, WAYS[way])
    assert labels.attributes == ["Hat", "Old"]
    assert labels.matrix(NAMES).T.tolist() == [HAT, OLD]


def test_gaps_are_unknown_and_minus_one_is_what_it_is_beside(tmp_path: Path) -> None:
    cells = zip(NAMES, ("1", "-1", "1", "NaN", "", "-1"), ("1", "0", "-1", " ", "1", "0"),
                strict=True)  # fmt: skip
    labels = read(tmp_path, "file,a,b\n" + "".join(f"{n},{a},{b}\n" for n, a, b in cells))
    assert labels.matrix(NAMES).T.tolist() == [[1, 0, 1, -1, -1, 0], [1, 0, -1, -1, 1, 0]]
    assert not labels.remarks


def test_names_of_columns_may_have_commas_where_rows_tell_the_delimiter(tmp_path: Path) -> None:
    text = "file\thair (red, brown)\n" + "".join(f"{n}\t{k % 2}\n" for k, n in enumerate(NAMES))
    assert read(tmp_path, text).attributes == ["hair (red, brown)"]
    quoted = "".join(f'{n},"a, b; c",{k % 2}\n' for k, n in enumerate(NAMES))
    assert read(tmp_path, f"file,note;s,hat\n{quoted}").attributes == ["hat"]


def test_numbers_have_units_and_commas_where_these_dont_cut(tmp_path: Path) -> None:
    text = "file;age (years);pose\n" + "".join(
        f"{n};{20 + k},5;{k - 2 if k else ''}\n" for k, n in enumerate(NAMES)
    )
    labels = read(tmp_path, text)
    values = labels.values(NAMES)
    assert list(labels.numbers) == ["age", "pose"] and labels.units == {"age": "years"}
    assert values[:, 0].tolist() == [20.5, 21.5, 22.5, 23.5, 24.5, 25.5]
    assert math.isnan(values[0, 1]) and values[1:, 1].tolist() == [-1, 0, 1, 2, 3]
    assert not labels.attributes and not labels.remarks


@pytest.mark.parametrize(
    ("said", "values"),
    [
        ("950 1,234 12,500 1,000 2,000 3", None),
        ("1,234 1,235 1,236 1,237 1,238 1,239", None),
        ("0,950 1,234 1,500 1,000 2,000 3", [0.95, 1.234, 1.5, 1, 2, 3]),
        ("1,234 12,5 1 2 3 4", [1.234, 12.5, 1, 2, 3, 4]),
    ],
)
def test_commas_that_may_be_of_thousands_are_no_decimals(
    tmp_path: Path, said: str, values: list[float] | None
) -> None:
    rows = zip(NAMES, said.split(), HAT, strict=True)
    labels = read(tmp_path, "file\tyen\that\n" + "".join(f"{n}\t{v}\t{h}\n" for n, v, h in rows))
    assert labels.attributes == ["hat"]
    if values is None:
        assert not labels.numbers and "1,234 may be 1234 or 1.234" in labels.remarks[0]
    else:
        assert labels.values(NAMES)[:, 0].tolist() == pytest.approx(values)


def test_numbers_that_differ_in_their_unit_alone_are_refused(tmp_path: Path) -> None:
    text = "file,height (cm),height [in]\n" + "".join(
        f"{n},{150 + k},{60 + k / 2}\n" for k, n in enumerate(NAMES)
    )
    with pytest.raises(InputError, match=r"labels\.csv: two columns are 'height' but for the unit"):
        read(tmp_path, text)


def test_words_for_nothing_are_no_class(tmp_path: Path) -> None:
    said = ("dog", "NA", "nan", "Null", "N/A", "cat")
    text = "file,kind\n" + "".join(f"{n},{s}\n" for n, s in zip(NAMES, said, strict=True))
    assert read(tmp_path, text).texts["kind"] == {NAMES[0]: "dog", NAMES[5]: "cat"}


def test_what_isnt_taken_is_named_with_the_reason(tmp_path: Path) -> None:
    kinds = ("cat", "dog", "", "cat", "", "dog")
    text = "file,Hat,kind,none,two,row,typo\n" + "".join(
        f"{n},{a},{kinds[k]},,{a + 1},{k},{a if k else 'l'}\n"
        for k, (n, a) in enumerate(zip(NAMES, HAT, strict=True))
    )
    labels = read(tmp_path, text)
    assert labels.attributes == ["Hat"] and not labels.numbers
    (remark,) = labels.remarks
    for told in (
        "kind ('cat' in line 2 is no number)", "none (holds nothing)", "two (holds 1 and 2 alone",
        "row (numbers the rows)", "typo ('l' in line 2 is no number)",
    ):  # fmt: skip
        assert told in remark
    assert labels.texts["kind"] == {n: k for n, k in zip(NAMES, kinds, strict=True) if k}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (table(",").replace("002.png,1,1", "002.png,1"), "line 4: 2 cells, where the header has 3"),
        (table(";").replace("002.png;1;1", "002.png;1;1;0"), "line 4: 4 cells"),
        (table(",").replace("003.png", ""), "line 5: names no picture"),
        (table(",").replace("003.png", "./002.png"), "lines 4 and 5 are both of '002.png'"),
        ("file,Hat\na/000.png,1\nb/000.png,0\n", "'a/000.png' and 'b/000.png' are both '000.png'"),
        ("file,Hat,Hat\n000.png,1,0\n", "two columns are called 'Hat'"),
        ("000.png,1,0\n001.png,0,1\n", "its first line names a picture"),
        ('file,Hat\n"000.png,1\n', "line 2: can't be read as a table"),
        (b"file,Hat\n\xe4.png,1\n", "line 2: not UTF-8; save it as CSV"),
        (b"file,Hat\n" + bytes(99), "no table of text; save it as CSV"),
        ("file,Hat\n", "holds no rows"),
        ("", "holds no rows"),
        ("file\n000.png\n", "no column holds labels"),
        ("file,two\n000.png,1\n001.png,2\n", "two (holds 1 and 2 alone; write 1 and 0)"),
        ("file,Hat\nx.png,1\ny.png,0\n", "0 of 6 pictures match, e.g. '000.png' beside 'x.png'"),
        ("," * 2000 + "\n" + "x" + "," * 2000 + "\n1\n", "no column holds labels"),
        (",".join(map(str, range(2000))) + "\n1\n", "2000 columns, more than 1000"),
    ],
)
def test_what_cant_be_read_says_where(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(InputError) as failed:
        read(tmp_path, text)
    assert says in str(failed.value) and str(failed.value).startswith(str(tmp_path))
    assert "\n" not in str(failed.value)


def test_limits_come_before_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a zip, whose own word is taken for the size."""
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.csv", b"file,hat\n" + bytes(65 << 20))
    with pytest.raises(InputError, match="unpacks to more than 64 MiB"):
        find_labels(path, None, ["a.png"])
    monkeypatch.setattr(delimited, "MAX_CELLS", 12)
    with pytest.raises(InputError, match="more than 12 cells"):
        read(tmp_path, table(","))
    monkeypatch.setattr(delimited, "MAX_TEXTS", 5)
    with pytest.raises(InputError, match="more than 5 cells that differ"):
        read(tmp_path, table(","))


class TestNames:
    def test_the_ends_of_paths(self, tmp_path: Path) -> None:
        """Of the picture or the row; what could be two pictures' is neither's."""
        names = ["a/1.png", "a/2.png", "b/2.png", "c/é.png", "d/5.png"]
        rows = ["1.png", "2.png", "x/c/e\u0301.png", "D/5.png"]
        (tmp_path / "l.csv").write_text("file,hat\n" + "".join(f"{n},1\n" for n in rows))
        labels = find_labels(tmp_path, tmp_path / "l.csv", names)
        assert labels is not None
        assert labels.matrix(names)[:, 0].tolist() == [1, -1, -1, 1, 1]
        (remark,) = labels.remarks
        assert "3 of 5 pictures match, e.g. 'a/2.png' beside '2.png'" in remark

    def test_a_path_goes_before_an_end(self, tmp_path: Path) -> None:
        (tmp_path / "l.csv").write_text("file,hat\n1.png,1\na/1.png,0\n")
        labels = find_labels(tmp_path, tmp_path / "l.csv", ["1.png", "a/1.png"])
        assert labels is not None and labels.matrix(["1.png", "a/1.png"]).tolist() == [[1], [0]]

    def test_names_that_differ_in_case_alone_arent_mixed_up(self, tmp_path: Path) -> None:
        (tmp_path / "l.csv").write_text("file,hat\nFACE.png,1\nB.png,0\n")
        names = ["Face.png", "face.png", "b.png"]
        labels = find_labels(tmp_path, tmp_path / "l.csv", names)
        assert labels is not None and labels.matrix(names)[:, 0].tolist() == [-1, -1, 0]

    def test_composed_letters(self, tmp_path: Path) -> None:
        name = "Zoë.png"
        (tmp_path / "l.csv").write_text(f"file,hat\n{unicodedata.normalize('NFD', name)},1\n")
        labels = find_labels(tmp_path, tmp_path / "l.csv", [name])
        assert labels is not None and labels.matrix([name]).tolist() == [[1]]

    def test_pictures_without_a_row_are_said(self, tmp_path: Path) -> None:
        labels = read(tmp_path, "file,hat\n000.png,1\n001.png,0\n")
        assert "2 of 6 pictures have a row, '002.png' has none" in labels.remarks[0]
        assert not read(tmp_path, table(",") + "999.png,1,1\n").remarks  # rows of other pictures


class TestSplits:
    def test_words_and_numbers(self, tmp_path: Path) -> None:
        said = ("Train", "VAL", "test", "training", "dev", "0")
        text = "file,split\n" + "".join(f"{n},{s}\n" for n, s in zip(NAMES, said, strict=True))
        labels = read(tmp_path, text)
        assert sorted(labels.held_out) == [NAMES[k] for k in (1, 2, 4)] and not labels.remarks

    def test_others_are_named(self, tmp_path: Path) -> None:
        said = ("train", "extra", "", "train", "train", "train")
        text = "file,split\n" + "".join(f"{n},{s}\n" for n, s in zip(NAMES, said, strict=True))
        labels = read(tmp_path, text)
        assert labels.held_out == {NAMES[1]}
        assert "split says 'extra' in line 3" in labels.remarks[0]
        assert "1 rows have no split" in labels.remarks[1]

    @pytest.mark.parametrize("column", ["split", "partition", "Partition"])
    @pytest.mark.parametrize(
        "said",
        ["0 1 2 0 1 0", "0.0 1.0 2.0 0.0 1.0 0.0", "0.0 1 2  1 nan", "train VAL test  dev NA"],
    )
    def test_both_columns_hold_words_and_numbers_with_gaps(
        self, tmp_path: Path, column: str, said: str
    ) -> None:
        """As pandas writes whole numbers beside a gap; what is empty is trained on, and said."""
        rows = zip(NAMES, said.split(" "), strict=True)
        labels = read(tmp_path, f"file,{column}\n" + "".join(f"{n},{s}\n" for n, s in rows))
        assert sorted(labels.held_out) == [NAMES[k] for k in (1, 2, 4)]
        assert not labels.numbers and not labels.attributes and not labels.texts
        gaps = [f"2 rows have no {column}; they are trained on"] if "  " in said else []
        assert [one.partition("csv: ")[2] for one in labels.remarks] == gaps

    def test_a_partition_of_other_words_is_none(self, tmp_path: Path) -> None:
        text = "file,partition\n" + "".join(f"{n},{'ab'[k % 2]}\n" for k, n in enumerate(NAMES))
        labels = read(tmp_path, text)
        assert not labels.held_out and "partition ('a' in line 2" in labels.remarks[0]

    def test_folders_beside_train_are_held_out(self, tmp_path: Path) -> None:
        """Also where a table says nothing of it; what it says of it goes before."""
        names = ["all/Train/0.png", "all/Train/1.png", "all/val/2.png", "all/test/x/3.png"]
        labels = find_labels(tmp_path, None, names)
        assert labels is not None and labels.held_out == {names[2], names[3]}
        assert labels.remarks == ["the folders say what is held out: test (1), val (1)"]
        assert not (labels.attributes or labels.texts or labels.numbers)
        path = tmp_path / "l.csv"
        path.write_text("file,hat\n" + "".join(f"{n},{k % 2}\n" for k, n in enumerate(names)))
        beside = find_labels(tmp_path, path, names)
        assert beside is not None and beside.attributes == ["hat"]
        assert (beside.held_out, beside.remarks) == (labels.held_out, labels.remarks)
        rows = "".join(f"{n},{'train' if k else 'val'}\n" for k, n in enumerate(names))
        path.write_text("file,split\n" + rows)
        told = find_labels(tmp_path, path, names)
        assert told is not None and told.held_out == {names[0]} and not told.remarks

    @pytest.mark.parametrize("suffix", ["txt", "csv"])
    def test_celebas_lies_beside_its_attributes(self, tmp_path: Path, suffix: str) -> None:
        """As it is, and as Kaggle has it."""
        parts = "".join(f"{n}{' ,'[suffix == 'csv']}{k % 3}\n" for k, n in enumerate(NAMES))
        head = "image_id,partition\n" if suffix == "csv" else ""
        (tmp_path / f"list_eval_partition.{suffix}").write_text(head + parts)
        text = CELEBA if suffix == "txt" else table(",").replace("file", "image_id")
        labels = read(tmp_path, text, f"list_attr_celeba.{suffix}")
        assert labels.matrix(NAMES).T.tolist() == [HAT, OLD]
        assert sorted(labels.held_out) == [NAMES[k] for k in (1, 2, 4, 5)]
        alone = read_labels(tmp_path / f"list_eval_partition.{suffix}", tmp_path)
        assert alone.held_out == labels.held_out and not alone.attributes

    def test_a_table_without_header_is_celebas_by_its_own_name(self, tmp_path: Path) -> None:
        """Not by that of a folder above it."""
        (tmp_path / "partition1").mkdir()
        with pytest.raises(InputError, match="its first line names a picture"):
            read(tmp_path / "partition1", "".join(f"{n},1\n" for n in NAMES))

    def test_a_count_that_is_wrong_is_said(self, tmp_path: Path) -> None:
        labels = read(tmp_path, CELEBA.replace("6\n", "202599\n", 1), "list_attr_celeba.txt")
        assert "says 202599 rows, and 6 follow" in labels.remarks[0]


class TestOthers:
    def data(self, folder: Path, labels: object, zipped: bool) -> Path:
        text = json.dumps({"labels": labels})
        if not zipped:
            (folder / "dataset.json").write_text(text)
            return folder
        with zipfile.ZipFile(folder / "d.zip", "w") as archive:
            archive.writestr("dataset.json", text)
        return folder / "d.zip"

    @pytest.mark.parametrize("zipped", [False, True])
    def test_stylegans_classes_and_vectors(self, tmp_path: Path, zipped: bool) -> None:
        names = [f"00000/img{n:08d}.png" for n in range(4)]
        pairs = [[n, k % 3] for k, n in enumerate(names)]
        labels = find_labels(self.data(tmp_path, pairs, zipped), None, names)
        assert labels is not None and labels.attributes == ["class_0", "class_1", "class_2"]
        assert labels.matrix(names)[3].tolist() == [1, 0, 0]
        assert labels.texts["class"][names[1]] == "class_1"
        vectors = [[n, [k % 2, k / 2]] for k, n in enumerate(names)]
        labels = find_labels(self.data(tmp_path, vectors, zipped), None, names)
        assert labels is not None and labels.attributes == ["label_0"]
        assert labels.values(names)[:, 0].tolist() == [0, 0.5, 1, 1.5]

    def test_a_zips_own_goes_before_a_file_of_that_name_here(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And so does what lies beside it; of what --labels names the file does."""
        monkeypatch.chdir(tmp_path)
        data, celeba = Path("d.zip"), Path("list_attr_celeba.txt")
        parts = "".join(f"{n} {k % 2}\n" for k, n in enumerate(NAMES))
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr(celeba.name, CELEBA)
            archive.writestr("list_eval_partition.txt", parts)
            archive.writestr("faces/labels.csv", table(","))
        for name in ("list_eval_partition.txt", "faces/labels.csv"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(f"file,split\n{NAMES[0]},test\n")
        own, named = find_labels(data, None, NAMES), find_labels(data, celeba, NAMES)
        assert own is not None and own.source == "d.zip/faces/labels.csv"
        assert own.attributes == ["Hat", "Old"] and not own.held_out
        assert named is not None and named.held_out == set(NAMES[1::2])
        celeba.write_text(CELEBA.replace("Old", "New"))
        here = find_labels(data, celeba, NAMES)
        assert here is not None and here.attributes == ["Hat", "New"]
        assert here.held_out == {NAMES[0]}

    def test_without_labels_there_are_none(self, tmp_path: Path) -> None:
        data = self.data(tmp_path, None, False)
        assert find_labels(data, None, ["a.png"]) is None
        with pytest.raises(InputError, match="no labels as StyleGAN has them"):
            find_labels(data, data / "dataset.json", ["a.png"])

    @pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"labels":[["a.png",1],["a.png",2]]}'])
    def test_json_that_cant_be(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(InputError, match=r"dataset\.json: "):
            find_labels(tmp_path, None, ["a.png"])

    def test_a_zip_is_opened_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its table is read whole each time, a minute for a million pictures."""
        with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
            archive.writestr("list_attr_celeba.txt", CELEBA)
            archive.writestr("list_eval_partition.txt", "".join(f"{n} 1\n" for n in NAMES))
        begin, opened = zipfile.ZipFile.__init__, list[object]()

        def counted(zipped: zipfile.ZipFile, *args: object) -> None:
            opened.append(args)
            begin(zipped, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(zipfile.ZipFile, "__init__", counted)
        labels = find_labels(tmp_path / "d.zip", None, NAMES)
        assert labels is not None and labels.held_out == set(NAMES) and len(opened) == 1

    @pytest.mark.parametrize("name", OWN)
    def test_a_table_of_labels_isnt_counted_as_no_picture(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("")
        assert list_pictures(tmp_path).told() == ""

    def test_the_first_of_several_files_is_read_and_the_others_named(self, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text(table(","))
        (tmp_path / "list_attr_celeba.txt").write_text(CELEBA)
        labels = find_labels(tmp_path, None, NAMES)
        assert labels is not None and "list_attr_celeba.txt isn't read" in labels.remarks[0]
