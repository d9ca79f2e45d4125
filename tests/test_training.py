"""Training: what is a function of (seed, step, shard), what stays frozen, what resumes exactly."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import picture, tiny_model
from safetensors.torch import load_file

from pdae_cli.checkpoints import read_model
from pdae_cli.diffusion.noise import generator
from pdae_cli.engine.computing import check_compiler
from pdae_cli.engine.model import Model
from pdae_cli.errors import InputError, UsageError
from pdae_cli.training.autoencoder import (
    AutoencoderLoss,
    autoencoder_stage,
    density,
    gap_closed,
    gap_residuals,
)
from pdae_cli.training.data import Pictures, open_pictures, order, split
from pdae_cli.training.dpm import DPMLoss, dpm_stage
from pdae_cli.training.latent import latent_stage
from pdae_cli.training.loop import Run, TrainOptions, draw_batch
from pdae_cli.training.state import EMA, load_state, save_state

SHAPE = (3, 32, 32)
EVEN = torch.full((1000,), 1e-3, dtype=torch.float64)
OPTIONS = TrainOptions(
    images=48, batch_size=8, accumulate=1, lr=1e-3, warmup=2, grad_clip=1.0, ema_images=1000,
    precision="no", channels_last=False, compile=False, flip=True, seed=5, log_every=1,
    save_every=100,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pictures, Pictures]:
    folder = tmp_path_factory.mktemp("faces")
    for number in range(24):
        picture(number, (32, 32)).save(folder / f"{number}.png")
    pictures = open_pictures(folder, 32)
    return pictures.subset(pictures.names[:16]), pictures.subset(pictures.names[16:])


def quiet(record: dict[str, object]) -> None:
    pass


def stage_of(kind: str, model: Model, data: tuple[Pictures, Pictures], folder: Path):  # type: ignore[no-untyped-def]
    if kind == "latent":
        return latent_stage(model, *data, folder, 16, 3, 0.1, 0, torch.float32)
    make = dpm_stage if kind == "dpm" else autoencoder_stage
    return make(model, *data, folder, torch.float32)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dpm", {}),
        ("dpm", {"accumulate": 2}),
        ("autoencoder", {}),
        ("autoencoder", {"accumulate": 2, "precision": "bf16"}),
        ("latent", {}),
        ("latent", {"accumulate": 2}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    kind: str, changes: dict[str, Any], data: tuple[Pictures, Pictures], tmp_path: Path
) -> None:
    """Stopped after 2 steps and continued = run through: same weights, average and Adam state."""
    options = replace(OPTIONS, images=32, **changes)
    states = []
    for name, stops in (("whole", [32]), ("broken", [16, 32])):
        folder = tmp_path / name
        for images in stops:
            stage = stage_of(kind, tiny_model(dropout=0.2), data, folder)
            Run(stage, replace(options, images=images), folder).train(quiet)
        states.append(load_file(folder / "training" / f"{kind}.safetensors"))
    assert states[0].keys() == states[1].keys() and len(states[0]) > 10
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_an_interrupted_run_keeps_what_it_did(
    data: tuple[Pictures, Pictures], tmp_path: Path
) -> None:
    stage = stage_of("dpm", tiny_model(), data, tmp_path)

    def interrupt(record: dict[str, object]) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(stage, OPTIONS, tmp_path).train(interrupt)
    resumed = Run(stage_of("dpm", tiny_model(), data, tmp_path), OPTIONS, tmp_path)
    assert resumed.step == 3


def test_a_signal_never_cuts_a_step_in_two(data: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    """SIGTERM in the middle of step 2: the step is finished, saved, and the rest comes out the same
    as without it."""
    states = []
    for name, signals in (("whole", []), ("broken", [signal.SIGTERM])):
        folder = tmp_path / name

        def shoot(*args: object, waiting: list[int] = signals, folder: Path = folder) -> None:
            if waiting and (folder / "training" / "dpm.jsonl").exists():
                os.kill(os.getpid(), waiting.pop())

        for _ in range(2):
            stage = stage_of("dpm", tiny_model(), data, folder)
            stage.objective.register_forward_hook(shoot)
            with contextlib.suppress(KeyboardInterrupt):
                Run(stage, replace(OPTIONS, images=32), folder).train(quiet)
        states.append(load_file(folder / "training" / "dpm.safetensors"))
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.parametrize("kind", ["dpm", "autoencoder"])
def test_a_run_goes_on_with_what_its_weights_mean(
    kind: str, data: tuple[Pictures, Pictures], tmp_path: Path
) -> None:
    """Another prediction or schedule has weights of the same shapes."""
    options = replace(OPTIONS, images=8)
    Run(stage_of(kind, tiny_model(), data, tmp_path), options, tmp_path, cpu=True).train(quiet)
    stage_of(kind, tiny_model(seed=1), data, tmp_path)
    with pytest.raises(UsageError, match="begun with another prediction"):
        stage_of(kind, tiny_model(prediction="v"), data, tmp_path)
    other = tiny_model()
    other.config = replace(other.config, schedule=replace(other.config.schedule, betas="cosine"))
    with pytest.raises(UsageError, match="begun with another schedule"):
        stage_of(kind, other, data, tmp_path)


def test_two_micro_batches_are_one_batch_of_the_same_pictures() -> None:
    """Shards cut the step's pictures up; together they are the step's."""
    numbers = order(100, 1, 40, 20).tolist()
    assert numbers == order(100, 1, 40, 10).tolist() + order(100, 1, 50, 10).tolist()


def test_an_epoch_sees_every_picture_once() -> None:
    assert sorted(order(50, 3, 50, 50).tolist()) == list(range(50))
    assert order(50, 3, 0, 50).tolist() != order(50, 3, 50, 50).tolist()
    assert order(50, 3, 40, 20).tolist() == order(50, 3, 0, 100).tolist()[40:60]


def test_a_batch_is_a_function_of_seed_step_and_row(data: tuple[Pictures, Pictures]) -> None:
    def draw(**changes: int) -> torch.Tensor:
        options = replace(OPTIONS, seed=changes.get("seed", 0))
        step, first = changes.get("step", 0), changes.get("first", 0)
        return draw_batch(data[0], EVEN, SHAPE, options, step, first, 4).eps

    assert torch.equal(draw(), draw())
    for other in ({"seed": 1}, {"step": 1}, {"first": 4}):
        assert not torch.equal(draw(), draw(**other))


def test_noise_is_normal_and_timesteps_are_uniform(data: tuple[Pictures, Pictures]) -> None:
    batches = [draw_batch(data[0], EVEN, SHAPE, OPTIONS, step, 0, 8) for step in range(60)]
    eps = torch.cat([batch.eps for batch in batches])
    t = torch.cat([batch.t for batch in batches]).double()
    assert abs(eps.mean()) < 0.01 and abs(eps.std() - 1) < 0.01
    assert abs(t.mean() - 499.5) < 60 and t.min() < 50 and t.max() > 949


@pytest.mark.parametrize("kind", ["dpm", "autoencoder"])
def test_losses_go_down(kind: str, data: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    records: list[dict[str, object]] = []
    stage = stage_of(kind, tiny_model(), data, tmp_path)
    before = stage.measure()
    options = replace(OPTIONS, images=320, lr=3e-3)
    Run(stage, options, tmp_path).train(records.append)
    after = records[-1]
    key = "held_out_loss" if kind == "dpm" else "gap_closed"
    gained = before[key] - float(str(after[key]))
    assert gained > 0 if kind == "dpm" else gained < 0


def test_the_frozen_part_stays_bit_equal(data: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    """Training the autoencoder changes E_phi and G_psi and nothing of eps_theta."""
    model = tiny_model(dropout=0.2)
    before = {name: value.clone() for name, value in model.dpm.state_dict().items()}
    Run(stage_of("autoencoder", model, data, tmp_path), OPTIONS, tmp_path).train(quiet)
    written = read_model(tmp_path, "written")
    for name, value in written.dpm.state_dict().items():
        assert torch.equal(value, before[name]), name
    fresh = tiny_model(dropout=0.2)
    for part in ("gradient_estimator", "encoder_network"):
        pairs = zip(vars(written)[part].parameters(), vars(fresh)[part].parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs), part


def test_the_frozen_part_has_no_dropout(model: Model) -> None:
    assert model.encoder_network is not None
    loss = AutoencoderLoss(model.heads, model.encoder_network, model.schedule)
    loss.train()
    assert not any(part.training for part in loss.heads.dpm.modules())
    assert loss.heads.gradient is not None
    assert loss.heads.gradient.training and loss.encoder.training


def test_objective_is_the_papers(model: Model) -> None:
    """E lambda |eps - eps_theta + (sqrt(alpha) sqrt(1 - alpha_bar)/beta) Sigma G|^2 (eq. 10), each
    timestep's term divided by how much more often than evenly it is drawn."""
    assert model.encoder_network is not None
    s = model.schedule
    loss = AutoencoderLoss(model.heads, model.encoder_network, s).eval()
    x_0, eps = torch.randn(2, 3, 3, 32, 32).unbind(0)
    t = torch.tensor([1, 300, 999])
    with torch.no_grad():
        ours = loss(x_0, t, eps).item()
        terms = []
        for row, step in enumerate(t.tolist()):
            alpha_bar, beta = s.alpha_bar[step].item(), s.beta[step].item()
            sigma = beta * (1 - s.alpha_bar[step - 1].item()) / (1 - alpha_bar)
            x_t = alpha_bar**0.5 * x_0[row] + (1 - alpha_bar) ** 0.5 * eps[row]
            eps_theta, g = model.predict(x_t[None], t[row, None], model.encoder(x_0[row, None]))
            assert g is not None
            factor = (1 - beta) ** 0.5 * (1 - alpha_bar) ** 0.5 / beta * sigma
            snr = alpha_bar / (1 - alpha_bar)
            residual = eps[row] - eps_theta[0] + factor * g[0]
            drawn_more_often = 1000 * density(s)[step].item()
            weight = snr**0.1 / (1 + snr) / drawn_more_often
            terms.append(weight * residual.square().mean().item())
    assert ours == pytest.approx(sum(terms) / 3, rel=1e-4)


def test_drawing_some_timesteps_more_often_leaves_the_expectation(model: Model) -> None:
    """Sum over t of density * lambda / (T density) * f(t) is the even mean of lambda * f(t)."""
    s = model.schedule
    chance = density(s)
    assert chance.sum().item() == pytest.approx(1) and (chance >= 0.25 / 1000).all()
    assert model.encoder_network is not None
    loss = AutoencoderLoss(model.heads, model.encoder_network, s)
    assert torch.allclose(chance * loss.weight, s.loss_weight() / 1000)


def test_dpm_objective_is_the_mean_squared_error(model: Model) -> None:
    loss = DPMLoss(model.heads, model.schedule)
    x_0, eps, t = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), torch.tensor([5, 800])
    predicted, _ = model.predict(model.schedule.add_noise(x_0, t, eps), t, None)
    assert loss(x_0, t, eps).item() == pytest.approx((eps - predicted).square().mean().item())


def test_v_objective_is_the_same_over_alpha_bar(model: Model) -> None:
    model = tiny_model(prediction="v")
    loss = DPMLoss(model.heads, model.schedule)
    x_0, eps, t = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), torch.tensor([5, 800])
    x_t = model.schedule.add_noise(x_0, t, eps)
    alpha_bar = model.schedule.alpha_bar[t].float()[:, None, None, None]
    v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
    with torch.no_grad():
        expected = (v - model.dpm(x_t, t)).square().mean().item()
    assert loss(x_0, t, eps).item() == pytest.approx(expected, rel=1e-3)


def test_gap_closed_is_one_minus_the_ratio_of_gaps(
    model: Model, data: tuple[Pictures, Pictures]
) -> None:
    """Against the posterior means themselves, at one t: 1 - |mu~ - mu - Sigma G|^2/|mu~ - mu|^2."""
    s = model.schedule
    x_0, eps = torch.randn(2, 4, 3, 32, 32, generator=generator(1)).unbind(0)
    t, z = torch.full((4,), 400), torch.randn(4, 6)
    plain, shifted = gap_residuals(model, x_0, t, eps, z)
    x_t = s.add_noise(x_0, t, eps)
    eps_theta, gradient = model.predict(x_t, t, z)
    assert gradient is not None
    true, mean = s.posterior_mean(x_0, x_t, t), s.model_mean(x_t, t, eps_theta)
    gap = (true - mean).square().sum((1, 2, 3))
    closed = true - mean - s.posterior_variance[400].item() * gradient
    ratio = closed.square().sum((1, 2, 3)) / gap
    assert torch.allclose(shifted / plain, ratio, rtol=1e-2)
    assert set(gap_closed(model, data[1])) == {"gap_closed", "gap_closed_shuffled"}


def test_average_has_the_stated_half_life() -> None:
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


def test_average_is_the_plain_formula() -> None:
    """mean <- mean + (1 - 2^(-batch / halflife)) (weights - mean), tensor by tensor, in float64."""
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


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_convolutions_frozen_ones_too(
    precision: str, dtype: torch.dtype, data: tuple[Pictures, Pictures], tmp_path: Path
) -> None:
    """Weights and loss stay float32; eps_theta's convolutions record no gradients."""
    model = tiny_model()
    stage = stage_of("autoencoder", model, data, tmp_path)
    run = Run(stage, replace(OPTIONS, precision=precision), tmp_path)
    seen: list[tuple[torch.dtype, bool]] = []
    for part in (model.dpm, model.encoder_network):
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
@pytest.mark.parametrize("kind", ["autoencoder", "latent"])
def test_a_compiled_step_leaves_the_same_files(
    kind: str, data: tuple[Pictures, Pictures], tmp_path: Path
) -> None:
    """--compile: the same names and, but for rounding, weights; a resumed run goes on exactly."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    states, models = [], []
    for name, compile, stops in (
        ("plain", False, [32]),
        ("compiled", True, [32]),
        ("resumed", True, [16, 32]),
    ):
        folder = tmp_path / name
        for images in stops:
            stage = stage_of(kind, tiny_model(), data, folder)
            Run(stage, replace(OPTIONS, images=images, compile=compile), folder).train(quiet)
        states.append(load_file(folder / "training" / f"{kind}.safetensors"))
        models.append(next(folder.glob("*.safetensors")))
    plain, compiled, resumed = states
    assert plain.keys() == compiled.keys() == resumed.keys()
    assert load_file(models[0]).keys() == load_file(models[1]).keys()
    for name, tensor in compiled.items():
        assert torch.equal(tensor, resumed[name]), name
        # Compiled, latent's dropout draws other numbers. Of a gradient that is all rounding, Adam
        # makes a step of lr.
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


def test_a_resumed_state_has_the_parameters_layout(tmp_path: Path) -> None:
    """Fused Adam reads weights and moments side by side in memory."""
    layer = torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = dict(layer.named_parameters())
    ema, optimizer = EMA(parameters, 10), torch.optim.Adam(parameters.values(), fused=True)
    layer(torch.randn(2, 4, 5, 5)).sum().backward()
    optimizer.step()
    before = {name: optimizer.state[p]["exp_avg"].clone() for name, p in parameters.items()}
    save_state(tmp_path / "state", parameters, ema, optimizer, {})
    load_state(tmp_path / "state", parameters, ema, optimizer)
    for name, parameter in parameters.items():
        moment = optimizer.state[parameter]["exp_avg"]
        assert torch.equal(moment, before[name]) and moment.stride() == parameter.stride()


def test_channels_last_on_a_cpu_is_refused(data: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    stage = stage_of("dpm", tiny_model(), data, tmp_path)
    with pytest.raises(UsageError, match="leave --channels-last out"):
        Run(stage, replace(OPTIONS, channels_last=True), tmp_path, cpu=True)


def test_other_options_dont_continue_a_run(data: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    Run(stage_of("dpm", tiny_model(), data, tmp_path), OPTIONS, tmp_path).train(quiet)
    changed = replace(OPTIONS, lr=1e-4)
    with pytest.raises(UsageError, match=r"lr 0.001 → 0.0001"):
        Run(stage_of("dpm", tiny_model(), data, tmp_path), changed, tmp_path)


def test_the_log_is_json_lines_without_repeats(
    data: tuple[Pictures, Pictures], tmp_path: Path
) -> None:
    for images in (16, 32):
        stage = stage_of("dpm", tiny_model(), data, tmp_path)
        Run(stage, replace(OPTIONS, images=images), tmp_path).train(quiet)
    lines = (tmp_path / "training" / "dpm.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)]
    assert steps == [1, 2, 3, 4]
    assert any("held_out_loss" in line for line in lines)


def test_a_picture_that_cant_be_read_is_replaced_and_counted(tmp_path: Path) -> None:
    for number in range(300):
        picture(number, (4, 4)).save(tmp_path / f"{number:03}.png")
    (tmp_path / "100.png").write_bytes(b"no")
    pictures = open_pictures(tmp_path, 4)
    assert torch.equal(pictures[100], pictures[101]) and list(pictures.bad) == ["100.png"]
    for number in range(20):
        (tmp_path / f"{number:03}.png").write_bytes(b"no")
    with pytest.raises(InputError, match="can't be read, the first"):
        open_pictures(tmp_path, 4).stack(range(30))


def test_zip_bombs_arent_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pdae_cli.training import data as module

    path = tmp_path / "it.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 100_000)
    monkeypatch.setattr(module, "MAX_FILE", 1000)
    pictures = open_pictures(path, 4)
    with pytest.raises(InputError, match="unpacks to more"):
        pictures._bytes("a.png")


def test_split_follows_names_not_order(data: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    for number in range(200):
        picture(0, (4, 4)).save(tmp_path / f"{number}.png")
    train, held_out = split(open_pictures(tmp_path, 4), None)
    assert len(train) + len(held_out) == 200 and 0 < len(held_out) < 20
    assert not set(train.names) & set(held_out.names)
