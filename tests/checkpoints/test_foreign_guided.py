"""guided-diffusion's checkpoints and their flags. Its numbers are in test_golden_others.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import foreign_models
import pytest
import torch
from foreign_models import converted, guided, states

from pdae_cli.checkpoints.convert import family_of, read_foreign
from pdae_cli.checkpoints.source import Source
from pdae_cli.checkpoints.transfer import interleaved, separated
from pdae_cli.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore")  # of others
quick = foreign_models.quick


def test_attention_orders_are_permutations() -> None:
    qkv = torch.arange(24.0).reshape(24, 1)
    heads = interleaved(qkv, 2)
    assert heads.flatten()[:4].tolist() == [0, 1, 2, 3]  # first head's queries
    assert heads.flatten()[4:8].tolist() == [8, 9, 10, 11]  # … and keys
    assert torch.equal(separated(heads, 2), qkv)


class TestGuided:
    def test_a_folder_and_a_file_give_the_same_network(self, tmp_path: Path) -> None:
        original = guided(tmp_path)
        x, t = states(original), torch.tensor([5, 700])
        text = tmp_path / "flags.txt"
        flags = json.loads((tmp_path / "model_flags.json").read_text())
        flags |= {"data_dir": "/data/lr=1e-4", "resume_checkpoint": "a=b.pt"}
        text.write_text(" ".join(f"--{name} {value}" for name, value in flags.items()))
        for source in (Source(tmp_path), Source(tmp_path / "ema.pt", text)):
            assert family_of(source) == "guided-diffusion"
            model = read_foreign(source).model
            with torch.no_grad():
                assert torch.allclose(model.dpm(x, t), original.dpm(x, t), atol=1e-5)

    @pytest.mark.parametrize("form", ["yaml", "json", "lines", "shell", "both"])
    def test_flags_as_other_programs_and_shells_have_them(self, form: str, tmp_path: Path) -> None:
        """YAML of DPS has one number where several need commas; READMEs have FLAGS="…"."""
        guided(tmp_path)
        flags = json.loads((tmp_path / "model_flags.json").read_text())
        expected = read_foreign(Source(tmp_path)).model.config
        path = tmp_path / f"flags.{form}"
        if form in ("yaml", "json"):
            flags |= {"attention_resolutions": 16, "channel_mult": [1, 2]}
            path.write_text(json.dumps(flags))
        else:
            pairs = [f"--{name} {value}" for name, value in flags.items()]
            cut = " \\\n" if form == "both" else " "
            shell = f"MODEL_FLAGS=\"{cut.join(pairs)}\"\nexport FLAGS='--diffusion_steps 1000'\n"
            path.write_text(" \\\n".join(pairs) if form == "lines" else shell)
        assert read_foreign(Source(tmp_path / "ema.pt", path)).model.config == expected

    def test_which_of_several_files_is_said_by_the_user(self, tmp_path: Path) -> None:
        guided(tmp_path)
        weights, family = tmp_path / "ema.pt", "guided-diffusion"
        weights.rename(tmp_path / "ema_0.9999_010000.pt")
        shutil.copy(tmp_path / "ema_0.9999_010000.pt", tmp_path / "ema_0.9999_020000.pt")
        with pytest.raises(ModelError, match=r"2 files .*, ema_.*_010000\.pt, ema_.*_020000\.pt"):
            read_foreign(Source(tmp_path))
        named = read_foreign(Source(tmp_path / "ema_0.9999_020000.pt"), family)
        assert named.model.config.source.endswith("020000.pt")
        for path in tmp_path.glob("*.pt"):
            path.unlink()
        with pytest.raises(ModelError, match=r"holds no weights; looked for .*\*\.pt"):
            read_foreign(Source(tmp_path))

    def test_the_new_attention_order(self, tmp_path: Path) -> None:
        """All queries, then all keys, then all values, instead of head by head."""
        original = guided(tmp_path, lambda flags: flags.update(use_new_attention_order=True))
        state = torch.load(tmp_path / "ema.pt", weights_only=True)
        for name, value in state.items():
            if ".qkv." in name:
                state[name] = separated(value, len(value) // 3 // 16)
        torch.save(state, tmp_path / "ema.pt")
        model = converted(tmp_path)
        x, t = states(original), torch.tensor([5, 700])
        with torch.no_grad():
            assert torch.allclose(model.dpm(x, t), original.dpm(x, t), atol=1e-5)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("--image_size 32 --learn_sigma", "at '--learn_sigma', write --name value pairs"),
            ("image_size 32", "at 'image_size'"),
            ("--learn_sigma maybe", "'maybe' isn't of type bool"),
            ("--num_channels wide", "'wide' isn't of type int"),
        ],
    )
    def test_flags_that_arent_pairs(self, text: str, message: str, tmp_path: Path) -> None:
        guided(tmp_path)
        (tmp_path / "flags.txt").write_text(text)
        with pytest.raises(ModelError, match=message):
            read_foreign(Source(tmp_path / "ema.pt", tmp_path / "flags.txt"))

    def test_flags_that_say_nothing_about_the_network_are_told(self, tmp_path: Path) -> None:
        guided(tmp_path, lambda flags: flags.update(use_magic=True, use_ddim=True))
        notes = read_foreign(Source(tmp_path)).notes
        assert any("left out: use_magic" in note and "ddim" not in note for note in notes)

    @pytest.mark.parametrize(
        ("flag", "value", "message"),
        [
            ("class_cond", True, "class_cond True isn't supported"),
            ("channel_mult", "1,3", "shape"),
            ("num_res_blocks", 2, "lacks the tensor|shape"),
            ("channel_mult", "1", "doesn't account for|lacks|shape"),
            ("noise_schedule", "sqrt", "noise_schedule"),
            ("image_size", "big", "image_size is 'big'"),
        ],
    )
    def test_flags_that_dont_fit(self, flag: str, value: Any, message: str, tmp_path: Path) -> None:
        guided(tmp_path, lambda flags: flags.update({flag: value}))
        with pytest.raises(ModelError, match=message):
            converted(tmp_path)
