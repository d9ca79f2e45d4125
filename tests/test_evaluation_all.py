"""`pdae evaluate all --quick` from end to end: a tiny model, a zip of pictures, one page."""

from __future__ import annotations

import io
import json
import zipfile
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import Command, picture, tiny_model
from PIL import Image

from pdae_cli.checkpoints import write_attributes, write_latent_dpm, write_model

EXPERIMENTS = ["gap", "reconstruction", "stages", "attributes", "samples", "semantics"]
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """What a page says and shows: headings, pictures, and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.policy = self.style = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.addresses += [named[key] or "" for key in LOADING & set(named)]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data)
            self.tags.append("")
        if self.tags and self.tags[-1] == "style":
            self.style += data

    def images(self) -> dict[str, list[bytes]]:
        """The pictures that stand in it, by kind."""
        found: dict[str, list[bytes]] = {}
        for address in self.addresses:
            if not address.startswith("#"):
                head, data = address.split(";base64,")
                found.setdefault(head.removeprefix("data:image/"), []).append(b64decode(data))
        return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of 16-pixel pictures with random weights."""
    folder, model = tmp_path_factory.mktemp("small") / "small", tiny_model(image_size=16)
    write_model(folder, model)
    assert model.attributes is not None and model.latent_dpm is not None
    write_attributes(folder, model.attributes)
    write_latent_dpm(folder, model.latent_dpm, {})
    return folder


def faces(path: Path, labels: bool, count: int = 48) -> Path:
    """A zip of generated pictures, half of them reddish, a third held out."""
    lines = ["file,split,red,odd"]
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            plain = Image.new("RGB", (16, 16), ("red", "blue")[number % 2])
            data = io.BytesIO()
            Image.blend(picture(number, (16, 16)), plain, 0.5).save(data, "PNG")
            archive.writestr(f"{number:02d}.png", data.getvalue())
            split = "val" if number % 3 == 0 else "train"
            lines.append(f"{number:02d}.png,{split},{1 - number % 2},{int(number % 4 == 1)}")
        if labels:
            archive.writestr("labels.csv", "\n".join(lines) + "\n")
    return path


def test_with_labels_every_experiment_is_on_the_page(
    pdae: Command, small: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "page.html", faces(tmp_path / "faces.zip", labels=True)
    result = pdae("evaluate", "all", "--quick", data, "-o", out, "--json", model=small)
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in result.text.splitlines()]
    assert list(dict.fromkeys(row["experiment"] for row in rows)) == EXPERIMENTS
    judged = {row["features"] for row in rows if "features" in row}
    assert len(judged) == 1, "reconstruction and samples are measured by one judge"
    assert "left out" not in result.err

    text = out.read_text()
    page = Page(text)
    assert page.headings == EXPERIMENTS
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert "default-src 'none'" in page.policy and "http" not in page.policy
    assert "url(" not in page.style and "@import" not in page.style
    assert "http:" not in text and "https:" not in text
    assert {one for one in page.addresses if not one.startswith("data:image/")} == {
        f"#{name}" for name in EXPERIMENTS
    }
    images = page.images()
    assert len(images["svg+xml"]) == 6 and len(images["png"]) == 5  # probes show no pictures
    for svg in images["svg+xml"]:
        for element in ElementTree.fromstring(svg).iter():
            assert not any("href" in name for name in element.attrib)
    for png in images["png"]:
        Image.open(io.BytesIO(png)).verify()
    assert page.tags.count("table") == 6


def test_without_labels_it_says_what_it_leaves_out(
    pdae: Command, small: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "page.html", faces(tmp_path / "faces.zip", labels=False, count=160)
    result = pdae("evaluate", "all", "--quick", data, "-o", out, model=small)
    assert result.code == 0, result.err
    said = [line for line in result.err.splitlines() if "left out" in line]
    assert [line.split()[1] for line in said] == ["attributes", "samples"]
    assert "no labels.csv; pass --labels CSV" in said[0]
    assert "pass --labels CSV, or a judge" in said[1]
    page = Page(out.read_text())
    assert page.headings == EXPERIMENTS and page.tags.count("table") == 4
    assert out.read_text().count("Left out: ") == 4  # above and in the section
    assert "LPIPS is left out" in result.text  # without labels there is no judge


def test_a_judge_that_is_none_ends_it_before_all_work(
    pdae: Command, small: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "page.html", faces(tmp_path / "faces.zip", labels=True, count=12)
    result = pdae("evaluate", "all", data, "-o", out, "--judge", data, model=small)
    assert result.code == 4 and len(result.err.splitlines()) == 1 and not out.exists()
