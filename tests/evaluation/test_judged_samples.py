"""The judge's distances, and samples measured by it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled import FAST, faces

from pdae_cli.engine.model import Model
from pdae_cli.engine.tensors import sealed
from pdae_cli.errors import ModelError, UsageError
from pdae_cli.evaluation import metrics
from pdae_cli.evaluation.judge import Judge, read_judge, write_judge
from pdae_cli.evaluation.reconstruction import reconstruction
from pdae_cli.evaluation.samples import samples
from pdae_cli.pictures.sheets import GAP, WIDTH


def judge(size: int = 32) -> Judge:
    torch.manual_seed(0)
    return Judge(["a", "b"], size).eval().requires_grad_(False)


class TestJudge:
    """Its distance of pictures, in the features of all of its layers."""

    def test_layers_are_what_each_stage_hands_to_the_next(self) -> None:
        found = judge().layers(faces(2))
        assert [tuple(one.shape[1:]) for one in found] == [
            (32, 16, 16), (64, 8, 8), (128, 4, 4), (192, 2, 2)
        ]  # fmt: skip
        assert torch.equal(found[-1].mean((2, 3)).double(), judge().features(faces(2)))

    def test_more_noise_is_farther(self) -> None:
        x, noise = 0.5 * faces(), torch.randn(4, 3, 32, 32)
        found = [judge().distance(x, x + much * noise).mean() for much in (0, 0.05, 0.2, 0.8)]
        assert found[0] == 0 and found == sorted(found) and len(set(found)) == 4

    def test_what_8_bits_dont_show_is_no_distance(self) -> None:
        x = torch.full((1, 3, 32, 32), 0.5)
        assert judge().distance(x, x + 1e-4).item() == 0
        assert judge().distance(x + 1, x + 2).item() == 0  # both are white

    def test_parts_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        a, b = faces(5), faces(5).flip(0)
        whole = judge().distance(a, b)
        assert torch.equal(whole, metrics.feature_distance(judge().layers(a), judge().layers(b)))
        monkeypatch.setattr("pdae_cli.evaluation.judge.CHUNK", 2)
        assert torch.allclose(judge().distance(a, b), whole, rtol=1e-5)

    def test_reconstruction_has_it_where_a_judge_is_given(self, model: Model) -> None:
        x_0 = faces(2)
        finding = reconstruction(model, x_0, solvers=("leapfrog",), steps=(4,), judge=judge())
        both, z, _ = finding.rows
        assert both["judge_distance"] < 0.1 * z["judge_distance"]
        assert both["features"].startswith("judge untrained") and "not LPIPS" in finding.words
        back = model.decode(model.encode(x_0, solver="leapfrog", inference_steps=4))
        assert both["judge_distance"] == judge().distance(back, x_0).mean().item()
        with pytest.raises(UsageError, match="3x64x64 pictures, the model makes 3x32x32"):
            reconstruction(model, x_0, solvers=("ddim",), steps=(2,), judge=judge(64))


class TestSamples:
    def test_each_row_has_its_protocol(self, model: Model) -> None:
        finding = samples(model, judge(), faces(14), count=6, steps=(2, 3), sampling=FAST)
        kinds = [(r["samples"], r.get("inference_steps")) for r in finding.rows]
        assert kinds[0] == ("held-out pictures", None) and len(kinds) == 5
        assert [(r["count"], r["real"]) for r in finding.rows] == [(6, 8)] + 4 * [(6, 14)]
        for row in finding.rows:
            assert "judge" in row["features"]
            assert row["judge_frechet"] >= -1e-9 and 0 <= row["precision"] <= 1
        assert "Not comparable with KID and FID" in finding.words
        assert "it has 192 dimensions" in finding.words  # of 6 samples

    @pytest.mark.parametrize(("count", "some"), [(5, 5), (6, 6), (50, 6)])
    def test_real_pictures_are_measured_beside_other_real_ones(
        self, model: Model, monkeypatch: pytest.MonkeyPatch, count: int, some: int
    ) -> None:
        """As many as there are samples, or half of them: as those themselves would be."""
        real = faces(12)
        monkeypatch.setattr(Model, "sample", lambda *args, **how: (real[:count], None))
        finding = samples(model, judge(), real, count=count, steps=(2,), sampling=FAST)
        row, features = finding.rows[0], judge().features(real)
        assert (row["count"], row["real"]) == (some, 12 - some)
        a, b = features[:some], features[some:]
        assert row["judge_frechet"] == metrics.frechet(a, b)
        assert row["judge_kid"] == metrics.kernel_distance(a, b)
        assert (row["precision"], row["recall"]) == metrics.precision_recall(b, a)

    @pytest.mark.parametrize(("count", "columns"), [(5, 5), (7, 7), (9, 8)])
    def test_the_sheet_has_a_row_of_each_kind(
        self, model: Model, monkeypatch: pytest.MonkeyPatch, count: int, columns: int
    ) -> None:
        """Real ones white, those of eps_theta alone black, PDAE's grey."""

        def sample(_: Model, count: int, *__: Any, unconditional: bool, **___: Any) -> Any:
            return torch.full((count, 3, 32, 32), -1.0 if unconditional else 0.0), None

        monkeypatch.setattr(Model, "sample", sample)
        finding = samples(model, judge(), torch.ones(10, 3, 32, 32), count=count, steps=(2,))
        assert finding.sheet is not None
        across = finding.sheet.shape[2] - columns * (WIDTH + GAP)
        for row, value in enumerate((255, 0, 128)):
            middle = finding.sheet[:, GAP + row * (WIDTH + GAP) + WIDTH // 2, across:]
            assert (middle.unflatten(1, (columns, -1))[..., :WIDTH] == value).all()

    def test_fewer_real_pictures_than_make_two_sets_are_refused(self, model: Model) -> None:
        with pytest.raises(UsageError, match="at least 10 pictures, not 9"):
            samples(model, judge(), faces(9), count=5)

    @pytest.mark.parametrize("count", [0, 4])
    def test_fewer_samples_than_tell_anything_are_refused(self, model: Model, count: int) -> None:
        with pytest.raises(UsageError, match=f"count is {count}, and .* of 5 or more"):
            samples(model, judge(), faces(10), count=count)

    def test_what_cant_be_told_of_a_judge_is_written_as_unknown(self, tmp_path: Path) -> None:
        """NaN, as `train_judge` says it, is no JSON."""
        path = tmp_path / "judge.safetensors"
        write_judge(path, judge(), {"a": 0.5, "b": math.nan})
        assert read_judge(path)[1] == {"a": 0.5, "b": None}

    def test_a_judge_comes_back_from_its_file(self, tmp_path: Path) -> None:
        path = tmp_path / "judge.safetensors"
        write_judge(path, judge(), {"a": 0.5, "b": None})
        read, quality = read_judge(path)
        assert torch.equal(read.features(faces()), judge().features(faces()))
        assert (read.size, read.names, quality) == (32, ["a", "b"], {"a": 0.5, "b": None})
        assert len(read.weights_sha) == 64 and read.auroc == 0.5
        assert read.protocol == f"judge {read.weights_sha[:12]} of AUROC 0.500, of 8-bit pictures"

    @pytest.mark.parametrize(
        "facts",
        [
            {},
            {"names": ["a"], "size": 32, "channels": 3},
            {"names": ["a", "b"], "size": 32, "channels": 3, "auroc": {"a": "good"}},
            {"names": ["a", "b"], "size": 32, "channels": 3, "auroc": 0.9},
            {"names": 3},
            "x",
        ],
    )
    def test_files_that_are_no_judges(self, tmp_path: Path, facts: object) -> None:
        path = tmp_path / "judge.safetensors"
        state = {k: v.contiguous() for k, v in judge().state_dict().items()}
        path.write_bytes(sealed(state, {"judge": json.dumps(facts)}))
        with pytest.raises(ModelError, match="can't be read"):
            read_judge(path)
