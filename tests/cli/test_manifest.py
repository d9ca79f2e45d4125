"""What an output folder's manifest says of its files, and whose they are."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from conftest import Command, picture
from random_codes import codes_of

from pdae_cli.cli.run.inputs import Item
from pdae_cli.cli.run.manifest import Job, Manifest, State
from pdae_cli.engine.codes import to_bytes
from pdae_cli.engine.tensors import sealed

JOB = Job("encode", "m" * 64, {"seed": 0})
ITEM = Item("in.png", Path("in"), name="in.png")
# Lines that say what they should, but for one thing of another kind: of an empty file, of its job.
OUTPUT = b'{"output": "a.png", "sha256": "' + sha256(b"").hexdigest().encode() + b'", "job": %s}'
JOB_LINE = b'\n{"job": "j", "command": "encode", "model": "' + b"m" * 64 + b'", "options": null}'


class TestManifest:
    """What is done is what a line says and the file's own content confirms."""

    def test_an_output_is_done_when_its_line_and_its_content_agree(self, tmp_path: Path) -> None:
        manifest = Manifest(tmp_path, JOB)
        out = tmp_path / "a.png"
        assert manifest.state(out, "s", ITEM) == State()
        out.write_bytes(b"somebody's")
        assert manifest.state(out, "s", ITEM).foreign
        out.unlink()
        manifest.add([(ITEM, out, "s", b"content", {"seed": 0}, "")])
        manifest = Manifest(tmp_path, JOB)
        assert manifest.state(out, "s", ITEM).reason == "it is missing"
        out.write_bytes(b"content")
        assert manifest.state(out, "s", ITEM).done and manifest.state(out, "s", ITEM).record == {
            "seed": 0
        }
        assert manifest.state(out, "t", ITEM).reason == "its input changed"
        out.write_bytes(b"")
        assert manifest.state(out, "s", ITEM).reason == "it isn't what was written"

    def test_other_jobs(self, tmp_path: Path) -> None:
        with_line = Manifest(tmp_path, JOB)
        out = tmp_path / "a.png"
        with_line.add([(ITEM, out, "s", b"content", {}, "")])
        out.write_bytes(b"content")
        for job, reason, foreign in [
            (Job("encode", "m" * 64, {"seed": 1}), "--seed was 0, is 1", False),
            (Job("encode", "n" * 64, {"seed": 0}), "another model", False),
            (Job("decode", "m" * 64, {"seed": 0}), "", True),
        ]:
            manifest = Manifest(tmp_path, job)
            state = manifest.state(out, "s", ITEM)
            assert (state.done, state.reason, state.foreign) == (False, reason, foreign)

    def test_options_that_werent_given_dont_count(self) -> None:
        more = Job("encode", "m" * 64, {"seed": 0, "new": None, "other": False, "more": []})
        assert more.digest == JOB.digest != Job("encode", "m" * 64, {"seed": 1}).digest

    def test_another_run_of_the_job_at_the_same_time(self, tmp_path: Path) -> None:
        first, second = Manifest(tmp_path, JOB), Manifest(tmp_path, JOB)
        for content in (b"content", b"other content"):  # made, and made again
            out = tmp_path / "a.png"
            first.add([(ITEM, out, "s", content, {}, "")])
            out.write_bytes(content)
            assert second.state(out, "s", ITEM).done
        out.write_bytes(b"somebody's")
        assert second.state(out, "s", ITEM).foreign

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif"])
    def test_only_what_is_surely_damaged_is_nobodys(
        self, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, manifest = tmp_path / f"a{suffix}", Manifest(tmp_path, JOB)
        manifest.add([(ITEM, out, "s", b"content", {}, "")])
        manifest = Manifest(tmp_path, JOB)
        picture(size=(64, 64)).save(out)
        whole = out.read_bytes()
        for content in (b"", whole[:16], whole[:-40], whole[:60]):
            out.write_bytes(content)
            assert not manifest.state(out, "s", ITEM).foreign
        for content in (b"of a format that we don't open", whole):
            out.write_bytes(content)
            assert manifest.state(out, "s", ITEM).foreign
        for limit in ("decoding.MAX_PIXELS", "decoding.Image.MAX_IMAGE_PIXELS"):
            with monkeypatch.context() as patch:
                patch.setattr(f"pdae_cli.pictures.{limit}", 100)
                assert manifest.state(out, "s", ITEM).foreign
        out.unlink()
        out.mkdir()
        assert manifest.state(out, "s", ITEM) == State(foreign=True, reason="and can't be read")

    def test_codes_of_another_version_are_somebodys(self, tmp_path: Path) -> None:
        out, manifest = tmp_path / "a.safetensors", Manifest(tmp_path, JOB)
        manifest.add([(ITEM, out, "s", b"content", {}, "")])
        manifest = Manifest(tmp_path, JOB)
        whole = sealed({"z": torch.zeros(1, 4)}, {"pdae": '{"format": "pdae-codes-9"}', "new": ""})
        for content, foreign in ((whole, True), (whole[:-1], False), (b"a text", True)):
            out.write_bytes(content)
            assert manifest.state(out, "s", ITEM).foreign == foreign

    def test_every_line_may_be_torn(self, tmp_path: Path) -> None:
        out = tmp_path / "a.png"
        first = Manifest(tmp_path, JOB)
        first.add([(ITEM, out, "s", b"content", {}, "")])
        out.write_bytes(b"content")
        path = tmp_path / ".pdae" / "manifest.jsonl"
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            after = Manifest(tmp_path, JOB)  # goes on in the same file
            after.add([(ITEM, tmp_path / "b.png", "s", b"other", {}, "")])
            after = Manifest(tmp_path, JOB)
            assert not after.state(out, "s", ITEM).done or length >= len(whole) - 1
            (tmp_path / "b.png").write_bytes(b"other")
            assert after.state(tmp_path / "b.png", "s", ITEM).done
            (tmp_path / "b.png").unlink()

    @pytest.mark.parametrize(
        "line", [b"[]", b"1", b'{"output": 1}', b'{"output": "a.png", "sha256": []}', b"\xff{",
                 b'{"job": {}}', b"[" * 5000, OUTPUT % b"[]", OUTPUT % b'"j"' + JOB_LINE],
    )  # fmt: skip
    def test_damage_is_as_good_as_nothing(self, tmp_path: Path, line: bytes) -> None:
        (tmp_path / ".pdae").mkdir()
        (tmp_path / ".pdae" / "manifest.jsonl").write_bytes(line + b"\n")
        (tmp_path / "a.png").write_bytes(b"")
        manifest = Manifest(tmp_path, JOB)
        assert not manifest.state(tmp_path / "a.png", "s", ITEM).done

    def test_what_no_command_asks_of_it_may_be_unreadable(
        self, pdae: Command, tmp_path: Path
    ) -> None:
        """It is of folders that `encode` fills: splitting codes into one needs none."""
        (tmp_path / "z.safetensors").write_bytes(to_bytes(codes_of(2)))
        (tmp_path / "out" / ".pdae" / "manifest.jsonl").mkdir(parents=True)
        result = pdae("codes", "split", tmp_path / "z.safetensors", "-o", tmp_path / "out")
        assert result.code == 0, result.err
        result = pdae("encode", tmp_path / "z.safetensors", "-o", tmp_path / "out")
        assert result.code == 3 and "manifest.jsonl: not a regular file" in result.err
