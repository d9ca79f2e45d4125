"""Hostile safetensors: each is refused with one line before anything in it is used."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import Command
from hostile import FORMAT, deep, raw, refused, z
from torch import Tensor

from pdae_cli.checkpoints import load
from pdae_cli.checkpoints.native import read_attributes, read_latent_dpm
from pdae_cli.engine import tensors as safe
from pdae_cli.engine.codes import Codes, from_bytes, to_bytes
from pdae_cli.errors import InputError, ModelError
from pdae_cli.training.state import read_facts

FACTS: dict[str, Any] = {
    "format": "pdae-codes-2",
    "model": "tiny",
    "digest": "ab" * 32,
    "sampling": {"inference_steps": 5, "solver": "ddim"},
    "sources": ["a.png", "b.png"],
    "digests": ["01" * 32, "23" * 32],
    "converged": [],
}
TRUE = json.dumps(FACTS)
TENSORS = {"z": torch.ones(2, 6), "x_T": torch.ones(2, 3, 4, 4)}


class TestFormat:
    @pytest.mark.parametrize("data", FORMAT.values(), ids=FORMAT.keys())
    def test_every_reader_refuses(self, data: bytes, tiny_folder: Path, tmp_path: Path) -> None:
        """As codes, training state, weights, attributes, latent DPM."""
        path = tmp_path / "x.safetensors"
        path.write_bytes(data)
        refused(lambda: from_bytes(data, "it"), InputError, "it: not a codes file")
        refused(lambda: read_facts(path), InputError, path.name)
        shutil.copytree(tiny_folder, tmp_path / "m")
        shutil.copyfile(path, tmp_path / "m" / "model.safetensors")
        refused(lambda: load(str(tmp_path / "m")), ModelError, "model.safetensors")
        for read in (read_attributes, read_latent_dpm):
            refused(lambda read=read: read(path), ModelError, path.name)  # type: ignore[misc]

    def test_the_header_alone_gives_them_away(self) -> None:
        """All but three, which only the tensors' bytes do."""
        read = []
        for name, data in FORMAT.items():
            try:
                safe.check(data)
                read.append(name)
            except safe.TensorsError:
                continue
        assert read == ["numbers that aren't finite", "false seal", "seal that is none"]

    @pytest.mark.parametrize("shape", [[0, *[2**31] * 7], [*[2**31] * 7, 0]])
    def test_a_size_of_nothing_hides_no_huge_one(self, shape: list[int]) -> None:
        """No bytes are needed for it, and no tensor can have such a shape."""
        header = json.dumps({"z": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})
        refused(lambda: from_bytes(raw(header, b""), "it"), InputError, "it: not a codes file")
        with pytest.raises(safe.TensorsError, match="impossible shape"):
            safe.check(raw(header, b""))

    def test_there_are_as_many_as_were_promised(self) -> None:
        assert len(FORMAT) + len(WRONG) >= 60 and len(WRONG) == sum(map(len, PARTS))

    def test_the_same_without_the_damage_is_read(self) -> None:
        header = safe.check(raw(z()))
        assert safe.load(raw(z()), header)["z"].tolist() == [[0.0, 0.0]]

    @pytest.mark.parametrize(
        "name", ["100,000 tensors", "20 MB of metadata", "a million lists", "deep"]
    )
    def test_no_more_memory_than_a_few_times_the_file(self, name: str) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(safe.TensorsError):
                safe.check(FORMAT[name])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 100 << 20

    @pytest.mark.parametrize("part", ["[],", '{"a":1},', f'"{"x" * 90}",', r"\u005b\u005d\u002c"])
    def test_nor_of_headers_that_name_rows(self, part: str) -> None:
        """Longer than their numbers: refused before they are parsed, or of few values."""
        text = json.dumps("[" + part * (8_000_000 // len(part)) + "0]").replace(r"\\u", r"\u")
        data = raw(f'{{"__metadata__": {{"pdae": {text}}}, {json.dumps(z())[1:]}')
        tracemalloc.start()
        try:
            line = refused(lambda: from_bytes(data, "it"), InputError, "it: not a codes file")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 6 * len(data)
        assert ("MiB is too large" if len(part) < 9 else "JSON is a list") in line


# What a fact of the codes' metadata is changed to, and words of the answer.
WRONG_FACTS: dict[str, tuple[dict[str, Any], str]] = {
    "another format": ({"format": "pdae-codes-9"}, "'pdae-codes-9', this version reads"),
    "format is a list": ({"format": ["pdae-codes-2"]}, "this version reads"),
    "format turns the terminal": ({"format": "\x1b[31mred"}, "this version reads"),
    "unknown fact": ({"extra": 1}, "unknown fields: extra"),
    "model is a number": ({"model": 7}, "model is 7"),
    "model of a million letters": ({"model": "m" * 10**6}, "longer than 8192"),
    "digest isn't hexadecimal": ({"digest": "x" * 64}, "no SHA-256"),
    "digest is a number": ({"digest": 7}, "digest is 7"),
    "digest too long": ({"digest": "a" * 65}, "no SHA-256"),
    "sources are a text": ({"sources": "ab"}, "sources is 'ab'"),
    "one source too few": ({"sources": ["a.png"]}, "aren't lists of 2"),
    "100,000 sources": ({"sources": ["a"] * 10**5}, "aren't lists of 2"),
    "sources are numbers": ({"sources": [1, 2]}, "sources[] is 1"),
    "a source of a million letters": ({"sources": ["a" * 10**6, "b"]}, "longer than 8192"),
    "digests missing": ({"digests": []}, "aren't lists of 2"),
    "digests aren't hexadecimal": ({"digests": ["../../x", "25 %"]}, "no SHA-256"),
    "digests in upper case": ({"digests": ["AB" * 32, "CD" * 32]}, "no SHA-256"),
    "converged is null": ({"converged": None}, "converged"),
    "converged of one": ({"converged": [True]}, "converged"),
    "converged of numbers": ({"converged": [1, 0]}, "converged[] is 1"),
    "sampling is a list": ({"sampling": [1]}, "sampling is"),
    "unknown setting": ({"sampling": {"magic": 1}}, "unknown fields: magic"),
    "steps as text": ({"sampling": {"inference_steps": "20"}}, "inference_steps is '20'"),
    "steps true": ({"sampling": {"inference_steps": True}}, "inference_steps is True"),
    "steps with a fraction": ({"sampling": {"inference_steps": 20.5}}, "is 20.5"),
    "a billion steps": ({"sampling": {"inference_steps": 10**9}}, "must be 1 to 1000"),
    "negative steps": ({"sampling": {"inference_steps": -1}}, "must be 1 to 1000"),
    "a billion corrections": ({"sampling": {"corrections": 10**9}}, "0 to 20"),
    "unknown solver": ({"sampling": {"solver": "__import__"}}, "unknown solver"),
    "solver is a list": ({"sampling": {"solver": ["ddim"]}}, "solver is"),
    "unknown spacing": ({"sampling": {"spacing": "\x1b]0;x\x07"}}, "unknown spacing"),
    "unknown parity": ({"sampling": {"parity": "other"}}, "unknown parity"),
    "guidance as text": ({"sampling": {"guidance": "1"}}, "guidance is '1'"),
    "infinite guidance": ({"sampling": {"guidance": float("inf")}}, "Infinity"),
    "guided from a text": ({"sampling": {"guide_from": "999"}}, "guide_from is '999'"),
    "contradiction": ({"sampling": {"solver": "ddim", "parity": "pdae"}}, "leave solver"),
}
WRONG_TENSORS: dict[str, tuple[dict[str, Tensor], str]] = {
    "NaN in z": ({"z": torch.full((2, 6), torch.nan)}, "z' holds numbers that aren't finite"),
    "infinity in x_T": ({"x_T": torch.full((2, 3, 4, 4), torch.inf)}, "aren't finite"),
    "z of doubles": ({"z": torch.ones(2, 6, dtype=torch.float64)}, "float32"),
    "z of integers": ({"z": torch.ones(2, 6, dtype=torch.int32)}, "float32"),
    "z of one dimension": ({"z": torch.ones(12)}, "not (N, D)"),
    "no pictures": ({"z": torch.ones(0, 6)}, "not (N, D)"),
    "z without dimensions": ({"z": torch.ones(2, 0)}, "not (N, D)"),
    "x_T of other pictures": ({"x_T": torch.ones(3, 3, 4, 4)}, "not (2, C, H, W)"),
    "x_T flat": ({"x_T": torch.ones(2, 48)}, "not (2, C, H, W)"),
    "residual_T unlike x_T": ({"residual_T": torch.ones(2, 3, 8, 8)}, "residual_T isn't like x_T"),
    "another tensor": ({"weight": torch.ones(1)}, "aren't z, x_T and residual_T"),
}
WRONG_JSON = {
    "not JSON": ("format", "no JSON"),
    "a list": ("[]", "is a list"),
    "a number": ("1", "is a int"),
    "deep lists": (deep(), "too deep"),
    "deep objects": (deep('{"a":'), "too deep"),
    "NaN": ('{"format": NaN}', "the number NaN"),
    "1e999 as guidance": (
        json.dumps(FACTS | {"sampling": {"guidance": 7}}).replace("7", "1e999", 1),
        "the number 1e999",
    ),
    "a key twice": ('{"format": "pdae-codes-2", "format": "pdae-codes-2"}', "twice"),
    "a number of 5,000 digits": ('{"format": ' + "9" * 5000 + "}", "the number 999"),
}


def codes_file(facts: str, tensors: dict[str, Tensor] = TENSORS) -> bytes:
    """A codes file with a true seal, so that only what it says is wrong."""
    return safe.sealed(tensors, {"pdae": facts})


PARTS = WRONG_FACTS, WRONG_JSON, WRONG_TENSORS
WRONG = {
    **{k: (codes_file(json.dumps(FACTS | one)), said) for k, (one, said) in WRONG_FACTS.items()},
    **{k: (codes_file(text), said) for k, (text, said) in WRONG_JSON.items()},
    **{k: (codes_file(TRUE, TENSORS | one), said) for k, (one, said) in WRONG_TENSORS.items()},
}


class TestCodes:
    def test_the_same_without_the_change_is_read(self) -> None:
        assert len(from_bytes(codes_file(TRUE), "it")) == 2

    @pytest.mark.parametrize(("data", "words"), WRONG.values(), ids=WRONG.keys())
    def test_what_they_say(self, data: bytes, words: str) -> None:
        assert words in refused(lambda: from_bytes(data, "it"), InputError, "it: ")

    @pytest.mark.parametrize("missing", FACTS)
    def test_missing_facts(self, missing: str) -> None:
        source = codes_file(json.dumps({k: v for k, v in FACTS.items() if k != missing}))
        refused(lambda: from_bytes(source, "it"), InputError, "it: ")

    @pytest.mark.parametrize("metadata", [{}, {"other": "{}"}, {"pdae": "{}", "format": "pt"}])
    def test_metadata_of_other_programs(self, metadata: dict[str, str]) -> None:
        source = safe.sealed(TENSORS, metadata)
        refused(lambda: from_bytes(source, "it"), InputError, "it: not a codes file of pdae")

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (FORMAT["tensor twice"], "'z' twice"),
            (FORMAT["name with an escape"], r"'z\x1b[2J'"),
            (codes_file(deep()), "too deep"),
            (codes_file(json.dumps(FACTS | {"digest": 7})), "digest is 7"),
            (codes_file(json.dumps(FACTS | {"dtype": "\x1b[2J"})), r"dtype '\x1b[2J' isn't known"),
            (codes_file(json.dumps(FACTS | {"model": "\x1b[2J"})), r"\x1b[2J"),
            (codes_file(TRUE), "another model (tiny, weights abababababab)"),
        ],
        ids=["twice", "escape", "deep", "digest", "dtype", "model's name", "another model"],
    )
    def test_commands(
        self, pdae: Command, tiny_folder: Path, tmp_path: Path, data: bytes, words: str
    ) -> None:
        path = tmp_path / "x.safetensors"
        path.write_bytes(data)
        result = pdae("decode", path, "-o", tmp_path / "out.png")
        assert (result.code, result.out) == (3, b"")
        assert words in result.err and "\x1b" not in result.err and "Traceback" not in result.err
        if words.startswith("another model"):  # and which it is
            assert load(str(tiny_folder)).weights_sha[:12] in result.err
        assert not (tmp_path / "out.png").exists()


class TestSeals:
    """R9, R10: damage and edits are noticed before use, by the SHA-256 of the whole file."""

    CODES = Codes(
        torch.arange(12.0).reshape(2, 6),
        torch.ones(2, 3, 4, 4),
        sources=("a.png", "é.png"),
        picture_shas=("0" * 64, "00"),
        weights_sha="0" * 64,
    )

    def test_every_byte_matters(self) -> None:
        data, chance = to_bytes(self.CODES), random.Random(0)
        header = 8 + int.from_bytes(data[:8], "little")
        for place in range(len(data)):
            of_header = {1, 0x20, 0x80, chance.randrange(1, 256)}
            for flip in of_header if place < header else {1}:
                damaged = bytearray(data)
                damaged[place] ^= flip
                line = refused(lambda d=damaged: from_bytes(bytes(d), "it"), InputError, "it")  # type: ignore[misc]
                assert place < header or "it was damaged or edited" in line

    def test_edited_metadata_show_both_digests(self) -> None:
        data = to_bytes(self.CODES)
        seal = safe.check(data).metadata["sha256"]
        edited = data.replace(b"a.png", b"b.png")
        line = refused(lambda: from_bytes(edited, "it"), InputError, "it")
        assert seal[:12] in line and line.count("SHA-256") == 1 and "edited" in line

    def test_the_same_codes_make_the_same_bytes(self) -> None:
        assert to_bytes(self.CODES) == to_bytes(self.CODES)
        two = {"b": "2", "a": "1"}
        assert safe.sealed(TENSORS, two) == safe.sealed(TENSORS, dict(reversed(two.items())))

    def test_the_library_reads_sealed_files(self) -> None:
        tensors = safetensors.torch.load(to_bytes(self.CODES))
        assert torch.equal(tensors["z"], self.CODES.z)

    def test_files_without_a_seal_are_read(self) -> None:
        """As the library writes them."""
        data = safetensors.torch.save(TENSORS, metadata={"pdae": json.dumps(FACTS)})
        assert torch.equal(from_bytes(data, "it").z, TENSORS["z"])
