"""Configs of strangers: one short line, soon, whatever they are."""

from __future__ import annotations

import os
from pathlib import Path
from time import process_time

import pytest
from hostile import deep

from pdae_cli.checkpoints.convert import read_foreign
from pdae_cli.checkpoints.reading import read_object
from pdae_cli.checkpoints.source import Source
from pdae_cli.engine.tensors import TensorsError, strict_json
from pdae_cli.errors import ModelError, PdaeError


def levels(link: str, count: int = 9) -> str:
    """YAML whose every level names the one before nine times."""
    return "".join(
        f"a{n}: &a{n} {link.format(', '.join([f'*a{n - 1}'] * 9))}\n" for n in range(1, count)
    )


YAML = {
    "aliases": ("a0: &a0 [lol, lol]\n" + levels("[{}]"), "aliases stand for more"),
    "merge keys": ("a0: &a0 {k: 1}\n" + levels("{{<<: [{}]}}"), "aliases stand for more"),
    "merged one by one": ("a0: &a0 {k: 1}\n" + levels("{{x: {{<<: [{}]}}}}"), "aliases stand"),
    "keys": ("a0: &a0 [1]\n" + levels("{{? [{}] : 1}}"), "aliases stand for more"),
    "in itself": ("a: &a [*a]", "nested deeper"),
    "mappings in themselves": ("a: &a {b: *a}", "nested deeper"),
    "deep": ("[" * 40 + "]" * 40, "nested deeper"),
    "very deep": (deep()[:50_000], "can't be read"),
    "a long value": ("a: " + "x" * 5000, "more than 4096 characters"),
    "a number to the base of 60": ("a: " + ":".join(["1"] * 3000), "more than 4096 characters"),
    "many digits": ("a: " + "9" * 4096, "field"),
    "code": ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    "an unknown anchor": ("a: *b", "undefined alias"),
    "a number without digits": ("a: 0b_\nb: 0x_\nc: -_", "can't be read"),
    "no number": ("a: !!int ''", "can't be read"),
    "no truth": ("a: !!bool perhaps", "can't be read"),
    "no time": ("a: !!timestamp once", "can't be read"),
    "a list as a key": ("? [1]\n: 2", "unhashable"),
    "200 KB": ("a: 1\n" * 40_000, "larger than 128 KiB"),
    "nothing": ("", "NoneType"),
    "a list": ("[1]", "list"),
    "not UTF-8": ("a: \udcff", "UTF-8"),
    "a page": ("<!doctype html>", "web page"),
    "controls": ("a: \x1b[2J", "can't be read"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml(tmp_path: Path, name: str) -> None:
    text, words = YAML[name]
    path = tmp_path / "config.yml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    begun = process_time()
    try:
        told = repr(type(read_object(path)["a"]))  # a number of any size is one; fields have ranges
        assert words == "field" and "int" in told
    except ModelError as error:
        line = str(error)
        assert words in line and line.isprintable() and len(line) < 500
    assert process_time() - begun < 5


def test_aliases_that_mean_no_harm_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("base: &base {size: 64, ch: [1, 2]}\nnet: {<<: *base, ch: [4]}\nother: *base\n")
    assert read_object(path)["net"] == {"size": 64, "ch": [4]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"a": 1' + "0" * 400 + "}", "the number 1000"),
        ('{"a": 9223372036854775808}', "the number 9223372036854775808"),
        ('{"a": 1e999}', "the number 1e999"),
        ('{"a": NaN}', "the number NaN"),
    ],
)
def test_json(text: str, words: str) -> None:
    with pytest.raises(TensorsError, match=words) as caught:
        strict_json(text)
    assert len(str(caught.value)) < 200


def test_infinities_of_others_are_read_where_a_field_may_be_one(tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text('{"lambda_min_clipped": -Infinity}')
    assert read_object(path) == {"lambda_min_clipped": -float("inf")}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize(
    "name", ["config.json", "model_index.json", "model_flags.json", "last.ckpt", "checkpoint.pt"]
)
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "lost link"])
def test_what_is_no_file(tmp_path: Path, name: str, kind: str) -> None:
    place = tmp_path / name
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero" if kind == "device" else "/nowhere")
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(PdaeError) as caught:
        read_foreign(Source(tmp_path))
    assert caught.value.exit_code == 4 and len(str(caught.value)) < 1000


def test_long_and_odd_values_are_shown_short(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"_class_name": "UNet2DModel", "act_fn": "' + "\\u001b" * 100_000 + '"}'
    )
    with pytest.raises(ModelError, match="act_fn") as caught:
        read_foreign(Source(tmp_path))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
