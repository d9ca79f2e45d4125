"""The loop: what resumes exactly, what interrupts, what is refused, what is written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, tiny_model
from safetensors.torch import load_file
from small_runs import (
    OPTIONS,
    TINY,
    assert_equal,
    folder_of,
    losses,
    quiet,
    stage_of,
    state,
    task_of,
)

from pdae_cli.engine.computing import check_compiler
from pdae_cli.errors import STOPPING, InputError, UsageError
from pdae_cli.training.autoencoder import Weighting
from pdae_cli.training.loop import Training
from pdae_cli.training.state import EMA, load_state, locked, save_state

SHORT = replace(OPTIONS, images=32)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("faces"))


def run_of(kind: str, photos: Path, folder: Path, dropout: float = 0.0, **changes: Any) -> Training:
    model = tiny_model(dropout=dropout)
    return Training(
        stage_of(kind, model, task_of(photos, folder)), replace(SHORT, **changes), folder
    )


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dpm", {}),
        ("autoencoder", {"accumulate": 2, "precision": "bf16"}),
        ("latent", {"accumulate": 2}),
        ("autoencoder", {"optimizer": "muon"}),
        ("encoder", {"optimizer": "muon"}),
        ("diffae", {"accumulate": 2, "lr": 3e-3}),
        ("conditional", {}),
        ("classifier", {}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    kind: str, changes: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    """Stopped after 2 steps and continued = run through: same weights, average and moments."""
    for name, stops in (("whole", [32]), ("broken", [16, 32])):
        for images in stops:
            run = run_of(kind, photos, tmp_path / name, 0.2, images=images, **changes)
            run.train(quiet)
    assert_equal(*(state(tmp_path / name, run.stage.name) for name in ("whole", "broken")))


@pytest.mark.parametrize("place", [9, 400, -1, -2000])
def test_a_flipped_byte_in_the_state_is_noticed(place: int, photos: Path, tmp_path: Path) -> None:
    """In its header as in its numbers."""
    run_of("latent", photos, tmp_path, images=8).train(quiet)
    path = tmp_path / "training" / "latent.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(InputError, match="not this run's state") as caught:
        run_of("latent", photos, tmp_path)
    assert str(path) in str(caught.value) and "begin anew in another folder" in str(caught.value)


class Killed(BaseException):
    """Nothing catches it, as nothing catches `kill -9`."""


@pytest.mark.parametrize("dies", [2, 3, 4, 5])
def test_killed_while_it_saves_the_same_command_completes_it(
    dies: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of the last save's files takes its name: config, weights, config, state."""

    def train(folder: Path) -> None:
        run = run_of("dpm", photos, folder, images=16)
        run.stage.preview = lambda: (torch.zeros(1, 3, 32, 32), 1)
        run.train(quiet)

    train(tmp_path / "whole")
    replaced, replace_ = [], Path.replace

    def replace(self: Path, target: Path) -> Path:
        replaced.append(target)
        if len(replaced) == dies:
            raise Killed
        return replace_(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            train(tmp_path / "broken")
    train(tmp_path / "broken")
    files = [sorted(p.name for p in (tmp_path / one).rglob("*")) for one in ("whole", "broken")]
    assert files[0] == files[1]
    for name in ("model.safetensors", "config.json", "training/dpm.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_damaged_log_is_no_reason_to_stop(photos: Path, tmp_path: Path) -> None:
    run_of("latent", photos, tmp_path, images=16).train(quiet)
    path = tmp_path / "training" / "latent.jsonl"
    kept = path.read_bytes()
    path.write_bytes(b'{"loss": 1}\n\xff\n' + kept + b'{"step": 1, "lo')
    run_of("latent", photos, tmp_path).train(quiet)
    assert path.read_bytes().startswith(kept)


def test_an_interrupted_run_keeps_what_it_did(photos: Path, tmp_path: Path) -> None:
    def interrupt(record: dict[str, object]) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of("dpm", photos, tmp_path).train(interrupt)
    assert run_of("dpm", photos, tmp_path).step == 3


def test_a_signal_never_cuts_a_step_in_two(photos: Path, tmp_path: Path) -> None:
    """SIGHUP, where there is one, in the middle of step 2: the step is finished, saved, and the
    rest comes out the same as without it."""
    for name, signals in (("whole", []), ("broken", [STOPPING[0]])):
        folder = tmp_path / name

        def shoot(*args: object, waiting: list[int] = signals, folder: Path = folder) -> None:
            if waiting and (folder / "training" / "dpm.jsonl").exists():
                os.kill(os.getpid(), waiting.pop())

        for _ in range(2):
            run = run_of("dpm", photos, folder)
            run.stage.objective.register_forward_hook(shoot)
            with contextlib.suppress(KeyboardInterrupt):
                run.train(quiet)
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "broken"))


class TestRefusals:
    @pytest.mark.parametrize("kind", ["dpm", "autoencoder"])
    def test_weights_that_mean_something_else(
        self, kind: str, photos: Path, tmp_path: Path
    ) -> None:
        """Another prediction or schedule has weights of the same shapes."""
        run_of(kind, photos, tmp_path, images=8).train(quiet)
        task, other = task_of(photos, tmp_path), tiny_model()
        stage_of(kind, tiny_model(seed=1), task)
        with pytest.raises(UsageError, match=r"another network \(prediction eps → v\)"):
            stage_of(kind, tiny_model(prediction="v"), task)
        cosine = replace(other.config.schedule, betas="cosine")
        wide = replace(other.config.unet, image_size=2 * other.config.unet.image_size)
        size = f"image_size {other.config.unet.image_size} → {wide.image_size}"
        other.config = replace(other.config, schedule=cosine, unet=wide)
        with pytest.raises(UsageError, match=rf"\(betas linear → cosine, {size}\)"):
            stage_of(kind, other, task)

    def test_other_options(self, photos: Path, tmp_path: Path) -> None:
        run_of("autoencoder", photos, tmp_path, images=8).train(quiet)
        with pytest.raises(UsageError, match=r"lr 0.001 → 0.0001"):
            run_of("autoencoder", photos, tmp_path, lr=1e-4)
        task = task_of(photos, tmp_path)
        for how, said in ((("v", 0.1), "lambda → v"), (("lambda", 0.5), "gamma 0.1 → 0.5")):
            stage = stage_of("autoencoder", tiny_model(), task, weighting=Weighting(*how))
            with pytest.raises(UsageError, match=said):
                Training(stage, SHORT, tmp_path)

    def test_channels_last_on_a_cpu(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="leave --channels-last out"):
            run_of("dpm", photos, tmp_path, channels_last=True)

    def test_a_folder_that_is_trained_in(self, photos: Path, tmp_path: Path) -> None:
        """By whom is said; when they are through, it is free, and not what it was."""
        run = run_of("dpm", photos, tmp_path, images=8)
        with (
            locked(tmp_path / "training"),
            pytest.raises(UsageError, match=rf"trained in by process {os.getpid()} on .+; wait"),
        ):
            run.train(quiet)
        run.train(quiet)
        late = run_of("dpm", photos, tmp_path)
        run_of("dpm", photos, tmp_path, images=16).train(quiet)
        with pytest.raises(UsageError, match="trained on meanwhile; start again"):
            late.train(quiet)


def rates(run: Training) -> Iterator[float]:
    for group in run.batches():
        run.train_step(group)
        yield run.optimizer.param_groups[0]["lr"] / run.options.lr


def test_the_learning_rate_warms_up_and_cools_down(photos: Path, tmp_path: Path) -> None:
    """Over 2 steps, and over the last half of 8; without a cooldown not at all."""
    plain = run_of("latent", photos, tmp_path, images=64)
    assert list(rates(plain)) == [0.5] + [1.0] * 7
    cooled = run_of("latent", photos, tmp_path, images=64, cooldown=0.5)
    assert list(rates(cooled)) == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_convolutions_frozen_ones_too(
    precision: str, dtype: torch.dtype, photos: Path, tmp_path: Path
) -> None:
    """Weights and loss stay float32; eps_theta's convolutions record no gradients."""
    model = tiny_model()
    stage = stage_of("autoencoder", model, task_of(photos, tmp_path))
    run = Training(stage, replace(OPTIONS, precision=precision), tmp_path)
    seen: list[tuple[torch.dtype, bool]] = []
    for part in (model.dpm, model.encoder):
        convolution = next(m for m in part.modules() if isinstance(m, torch.nn.Conv2d))  # type: ignore[union-attr]
        convolution.register_forward_hook(
            lambda m, x, y: seen.append((y.dtype, y.requires_grad))  # type: ignore[misc]
        )
    loss = run.train_step(next(run.batches()))
    assert sorted(seen, key=lambda one: one[1]) == [(dtype, False), (dtype, True)]
    assert loss.dtype == torch.float32
    assert {p.dtype for p in stage.objective.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backend"), [("autoencoder", "aot_eager"), ("latent", "inductor")]
)
def test_a_compiled_step_leaves_the_same_files(
    kind: str, backend: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--compile: the same names and, but for rounding, weights; a resumed run goes on exactly. The
    large network is traced, not made into machine code: that takes g++ minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    for name, compile, stops in (
        ("plain", False, [32]),
        ("compiled", True, [32]),
        ("resumed", True, [16, 32]),
    ):
        for images in stops:
            run_of(kind, photos, tmp_path / name, images=images, compile=compile).train(quiet)
    plain, compiled = state(tmp_path / "plain", kind), state(tmp_path / "compiled", kind)
    assert_equal(compiled, state(tmp_path / "resumed", kind))
    models = [next((tmp_path / name).glob("*.safetensors")) for name in ("plain", "compiled")]
    assert plain.keys() == compiled.keys()
    assert load_file(models[0]).keys() == load_file(models[1]).keys()
    # Compiled, latent's dropout draws other numbers. Of a gradient that is all rounding, Adam
    # makes a step of lr.
    for name, tensor in compiled.items():
        if kind != "latent" and name.startswith("weight/"):
            assert torch.allclose(tensor, plain[name], atol=4 * OPTIONS.lr), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of torch
def test_compile_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    torch._dynamo.reset()
    with pytest.raises(UsageError, match=r"No working C\+\+ compiler") as caught:
        check_compiler(torch.device("cpu"))
    assert "\n" not in str(caught.value) and "leave --compile out" in str(caught.value)


class TestAverage:
    def test_it_has_the_stated_half_life(self) -> None:
        """After `halflife` pictures, half of the average is what it was."""
        parameter = torch.nn.Parameter(torch.zeros(1))
        ema = EMA({"p": parameter}, halflife=100)
        with torch.no_grad():
            parameter.fill_(1.0)
        for _ in range(10):
            ema.update(images_seen=10**9, batch_size=10)
        assert ema.shadow["p"].item() == pytest.approx(0.5, abs=1e-6)
        with ema.applied():
            assert parameter.item() == pytest.approx(0.5, abs=1e-6)
        assert parameter.item() == 1.0

    def test_it_is_the_plain_formula(self) -> None:
        """mean <- mean + (1 - 2^(-batch / halflife)) (weights - mean), one by one, in float64."""
        parameters = {
            name: torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))
            for name, shape in {"a": (3, 5), "b": (7,), "c": ()}.items()
        }
        ema = EMA(parameters, halflife=100)
        means = {name: p.detach().clone() for name, p in parameters.items()}
        for step in range(1, 30):
            remembered = min(100, 0.05 * step * 10)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.add_(torch.randn_like(parameter))
                    means[name] += (1 - 0.5 ** (10 / remembered)) * (parameter - means[name])
            ema.update(images_seen=step * 10, batch_size=10)
        for name, mean in means.items():
            assert torch.allclose(ema.shadow[name], mean, rtol=1e-12, atol=1e-14)


def test_a_resumed_state_has_the_parameters_layout(tmp_path: Path) -> None:
    """Fused Adam reads weights and moments side by side in memory."""
    layer = torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = dict(layer.named_parameters())
    ema, optimizer = EMA(parameters, 10), torch.optim.Adam(parameters.values(), fused=True)
    layer(torch.randn(2, 4, 5, 5)).sum().backward()
    optimizer.step()
    before = {name: optimizer.state[p]["exp_avg"].clone() for name, p in parameters.items()}
    save_state(tmp_path / "state", ema, optimizer, {"step": "1", "options": "{}"})
    load_state(tmp_path / "state", ema, optimizer, {})
    for name, parameter in parameters.items():
        moment = optimizer.state[parameter]["exp_avg"]
        assert torch.equal(moment, before[name]) and moment.stride() == parameter.stride()


class TestLog:
    def test_it_is_json_lines_without_repeats(
        self, pdae: Command, photos: Path, tmp_path: Path
    ) -> None:
        """In the folder and, with --json, as told; also over a resumed run."""
        args = ("train", "dpm", photos, "-o", tmp_path, *TINY, "--json")
        told = [pdae(*args, "--images", images) for images in (16, 32)]
        assert [one.code for one in told] == [0, 0] and told[0].err.count("\n") == 2
        lines = [json.loads(line) for one in told for line in one.text.splitlines()]
        assert [one["step"] for one in lines if "loss" in one] == [1, 2, 3, 4]
        assert [one["loss"] for one in lines if "loss" in one] == losses(tmp_path)
        assert any("held_out_loss" in one for one in lines)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
    def test_trackers_get_it_too(self, pdae: Command, photos: Path, tmp_path: Path) -> None:
        """Also over a resumed run."""
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        for images in (16, 32):
            args = ("--images", images, "--tracker", "tensorboard", "--quiet")
            result = pdae("train", "dpm", photos, "-o", tmp_path, *TINY, *args)
            assert result.code == 0, result.err
        events = EventAccumulator(str(tmp_path / "training" / "trackers" / "pdae-dpm"))
        events.Reload()
        drawn = [event.value for event in events.Scalars("loss")]
        assert drawn == pytest.approx(losses(tmp_path), rel=1e-6) and len(drawn) == 4
        assert set(events.Tags()["scalars"]) == {"loss", "images_per_second", "held_out_loss"}
