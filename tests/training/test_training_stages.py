"""Objectives and metrics of the stages, against the papers' formulas; what is trained."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from small_runs import OPTIONS, folder_of, quiet, stage_of, task_of
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from pdae_cli.checkpoints import read_model
from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.schedule import Schedule, posterior
from pdae_cli.diffusion.solvers import ancestral
from pdae_cli.engine.model import Model
from pdae_cli.errors import InputError, UsageError
from pdae_cli.training.autoencoder import (
    LAMBDA,
    AutoencoderLoss,
    Weighting,
    autoencoder_stage,
    density,
    gap_closed,
    gap_residuals,
)
from pdae_cli.training.data import Task
from pdae_cli.training.dpm import DPMLoss, held_out_noise, held_out_rows, new_dpm, usual_batch
from pdae_cli.training.latent import encode_all
from pdae_cli.training.loop import Training


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("task")
    return task_of(folder_of(folder / "faces"), folder / "run")


def loss_of(model: Model, weighting: Weighting = LAMBDA) -> AutoencoderLoss:
    assert model.encoder is not None
    return AutoencoderLoss(model.heads, model.encoder, model.schedule, weighting=weighting)


class TestEncodingAll:
    """Of a data set, to z."""

    def test_batches_change_nothing_and_one_that_doesnt_fit_is_halved(self, task: Task) -> None:
        """To the bit, mirrored or not."""
        model, told = tiny_model(), list[str]()
        whole = [encode_all(model, task.train, mirrored=flip) for flip in (False, True)]
        assert not torch.equal(*whole)
        encoder, asked = model.encoder, list[int]()
        assert encoder is not None

        def crowded(module: object, given: tuple[torch.Tensor, ...]) -> None:
            asked.append(len(given[0]))
            if len(given[0]) > 5:
                raise torch.OutOfMemoryError("out of memory")

        encoder.register_forward_pre_hook(crowded)
        model.batch_size, model.notify = 12, told.append
        found = [encode_all(model, task.train, mirrored=flip) for flip in (False, True)]
        assert all(map(torch.equal, found, whole))
        assert asked == [12, 6, 3, 3, 3, 3, 3, 1, 3, 3, 3, 3, 3, 1] and len(told) == 2

    def test_z_that_isnt_finite_is_refused(self, task: Task) -> None:
        model = tiny_model()
        assert model.encoder is not None
        next(model.encoder.parameters()).fill_(torch.nan)
        with pytest.raises(InputError, match="z has numbers that aren't finite"):
            encode_all(model, task.train)


@pytest.mark.parametrize("kind", ["dpm", "autoencoder", "encoder", "diffae"])
def test_a_save_fits_where_a_step_does(kind: str, task: Task, tmp_path: Path) -> None:
    """Here of 8 rows, where 13 don't; and what it measures is the same."""
    whole = stage_of(kind, tiny_model(), task).measure()

    def crowded(module: object, given: tuple[object, ...]) -> None:
        if given and isinstance(given[0], Tensor) and given[0].ndim == 4 and len(given[0]) > 12:
            raise torch.OutOfMemoryError("out of memory")

    hook = register_module_forward_pre_hook(crowded)
    try:
        stage = stage_of(kind, tiny_model(), replace(task, folder=tmp_path))
        assert stage.measure() == pytest.approx(whole, rel=1e-5)
        Training(stage, replace(OPTIONS, images=8), tmp_path).train(quiet)
    finally:
        hook.remove()


@pytest.mark.parametrize("size", [16, 32, 48, 64, 96, 128, 256, 512])
def test_what_is_left_open_fits_the_device_and_the_size(size: int) -> None:
    with torch.device("meta"):
        small, large = (
            new_dpm(0, "linear", "v", image_size=size, channels=3, accelerated=fast)
            for fast in (False, True)
        )
    first, parameters = small.config.unet.sizes[0], small.dpm.parameters()
    assert first <= 64 and sum(p.numel() for p in parameters) < 6e6
    assert small.config.unet.groups == 8 and usual_batch(size, accelerated=False) == 32
    assert large.config.unet.patch == 1 and large.config.unet.sizes[-1] <= 12
    assert 8 <= usual_batch(size, accelerated=True) <= 128
    assert usual_batch(size, accelerated=True) * size**2 <= 128 * 64**2 or size > 256


@pytest.mark.parametrize(
    ("kind", "how"),
    [("dpm", ()), ("autoencoder", ("lambda", 0.1)), ("autoencoder", ("v", 0.1))],
)
def test_losses_go_down(kind: str, how: tuple[str, float], task: Task, tmp_path: Path) -> None:
    records: list[dict[str, object]] = []
    more = {"weighting": Weighting(*how)} if how else {}
    stage = stage_of(kind, tiny_model(), replace(task, folder=tmp_path), **more)
    before = stage.measure()
    Training(stage, replace(OPTIONS, images=320, lr=3e-3), tmp_path).train(records.append)
    key = "held_out_loss" if kind == "dpm" else "gap_closed"
    gained = before[key] - float(str(records[-1][key]))
    assert gained > 0 if kind == "dpm" else gained < 0


def test_the_frozen_part_stays_bit_equal(task: Task, tmp_path: Path) -> None:
    """Training the autoencoder changes E_phi and G_psi and nothing of eps_theta."""
    model = tiny_model(dropout=0.2)
    before = {name: value.clone() for name, value in model.dpm.state_dict().items()}
    stage = stage_of("autoencoder", model, replace(task, folder=tmp_path))
    Training(stage, replace(OPTIONS, images=16), tmp_path).train(quiet)
    written = read_model(tmp_path, "written")
    for name, value in written.dpm.state_dict().items():
        assert torch.equal(value, before[name]), name
    fresh = tiny_model(dropout=0.2)
    for part in ("gradient_estimator", "encoder"):
        pairs = zip(vars(written)[part].parameters(), vars(fresh)[part].parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs), part


def test_a_frozen_encoder_stays_bit_equal(task: Task, tmp_path: Path) -> None:
    """And a run that goes on knows it again."""

    def run_of(seed: int) -> Training:
        folder = replace(task, folder=tmp_path)
        stage = autoencoder_stage(tiny_model(seed), folder, freeze_encoder=True)
        return Training(stage, replace(OPTIONS, images=16), tmp_path)

    run_of(0).train(quiet)
    written, fresh = read_model(tmp_path, "written"), tiny_model(0)
    for part, same in (("encoder", True), ("gradient_estimator", False)):
        pairs = zip(vars(written)[part].parameters(), vars(fresh)[part].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same, part
    with pytest.raises(UsageError, match="frozen"):
        run_of(3)


def test_the_frozen_part_has_no_dropout(model: Model) -> None:
    loss = loss_of(model).train()
    assert not any(part.training for part in loss.heads.dpm.modules())
    assert loss.heads.gradient is not None
    assert loss.heads.gradient.training and loss.encoder.training


@pytest.mark.parametrize(("kind", "gamma"), [("lambda", 0.1), ("lambda", 0.5), ("v", 0.1)])
def test_objective_is_the_papers(kind: str, gamma: float, model: Model) -> None:
    """E w |eps - eps_theta + (sqrt(alpha) sqrt(1 - alpha_bar)/beta) Sigma G|^2 (eq. 10), each
    timestep's term divided by how much more often than evenly it is drawn; w is lambda, or what
    makes it the error of v."""
    s = model.schedule
    loss = loss_of(model, Weighting(kind, gamma)).eval()
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
            residual = eps[row] - eps_theta[0] + factor * g[0]
            snr = alpha_bar / (1 - alpha_bar)
            drawn_more_often = 1000 * density(s, Weighting(kind, gamma))[step].item()
            weight = 1 / alpha_bar if kind == "v" else snr**gamma / (1 + snr)
            terms.append(weight / drawn_more_often * residual.square().mean().item())
    assert ours == pytest.approx(sum(terms) / 3, rel=1e-4)


def test_drawing_some_timesteps_more_often_leaves_the_expectation(model: Model) -> None:
    """Sum over t of density * lambda / (T density) * f(t) is the even mean of lambda * f(t)."""
    s = model.schedule
    chance = density(s)
    assert chance.sum().item() == pytest.approx(1) and (chance >= 0.25 / 1000).all()
    assert torch.allclose(chance * loss_of(model).weight, s.loss_weight() / 1000)


def test_by_the_error_of_v_timesteps_are_even_and_no_weight_is_huge(model: Model) -> None:
    """The linear schedule's are 1 / alpha_bar throughout; the cosine's last would be 4e8."""
    loss = loss_of(model, Weighting("v"))
    assert torch.equal(loss.density, torch.full((1000,), 1e-3, dtype=torch.float64))
    assert torch.allclose(loss.weight, 1 / model.schedule.alpha_bar)
    assert Schedule("cosine").loss_weight("v").max().item() == pytest.approx(1e5)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_dpm_objective_is_the_mean_squared_error(prediction: str) -> None:
    """Of eps; of v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 where that is predicted."""
    model = tiny_model(prediction=prediction)
    x_0, eps, t = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), torch.tensor([5, 800])
    alpha_bar = model.schedule.alpha_bar[t].float()[:, None, None, None]
    v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
    with torch.no_grad():
        output = model.dpm(model.schedule.add_noise(x_0, t, eps), t)
        ours = DPMLoss(model.heads, model.schedule)(x_0, t, eps).item()
    expected = ((v if prediction == "v" else eps) - output).square().mean().item()
    assert ours == pytest.approx(expected, rel=1e-3)


def test_gap_closed_is_one_minus_the_ratio_of_gaps(model: Model, task: Task) -> None:
    """Against the posterior means themselves, at one t: 1 - |mu~ - mu - Sigma G|^2/|mu~ - mu|^2."""
    s = model.schedule
    x_0, eps = torch.randn(2, 4, 3, 32, 32, generator=generator(1)).unbind(0)
    t, z = torch.full((4,), 400), torch.randn(4, 6)
    plain, shifted = gap_residuals(model, x_0, t, eps, z)
    x_t = s.add_noise(x_0, t, eps)
    eps_theta, gradient = model.predict(x_t, t, z)
    assert gradient is not None
    levels = s.alpha_bar[400].item(), s.alpha_bar_prev[400].item()
    of_x_0, of_x_t, variance = posterior(*levels)
    true = of_x_0 * x_0 + of_x_t * x_t
    mean, _ = ancestral(x_t, eps_theta, *levels, "small")
    gap = (true - mean).square().sum((1, 2, 3))
    closed = true - mean - variance * gradient
    ratio = closed.square().sum((1, 2, 3)) / gap
    assert torch.allclose(shifted / plain, ratio, rtol=1e-2)
    assert set(gap_closed(model, task.held_out)) == {"gap_closed", "gap_closed_shuffled"}


@pytest.mark.parametrize(("count", "rows"), [(1, 8), (12, 96), (33, 231), (129, 129), (999, 256)])
def test_few_held_out_pictures_are_measured_several_times(count: int, rows: int) -> None:
    """Each as often, and the picture before is never the same one."""
    numbers = held_out_rows(count)
    assert len(numbers) == rows and set(numbers) == set(range(min(count, 256)))
    assert set(Counter(numbers).values()) == {rows // min(count, 256)}
    if count > 1:
        assert all(
            one != other for one, other in zip(numbers, [*numbers[1:], numbers[0]], strict=True)
        )


def test_with_one_picture_held_out_nothing_is_shuffled(model: Model, task: Task) -> None:
    """It would be its own shuffle."""
    one = task.held_out.subset([0])
    assert set(gap_closed(model, one)) == {"gap_closed"}


def test_labels_like_its_own_arent_anothers(model: Model, task: Task) -> None:
    """Of eight pictures the last alone has others: it counts, and the first, which follows it."""
    labels = torch.eye(2, 6)[[0] * 7 + [1]]
    x_0, t, eps = held_out_noise(model, task.held_out, 200, 800)
    rows = [row for row in range(len(x_0)) if row % 8 in (0, 7)]
    z = labels[[row % 8 - 1 for row in rows]]
    plain, shifted = gap_residuals(model, x_0[rows], t[rows], eps[rows], z)
    measured = gap_closed(model, task.held_out, zs=labels)["gap_closed_shuffled"]
    assert measured == pytest.approx((1 - shifted / plain).mean().item())
    assert set(gap_closed(model, task.held_out, zs=labels[:1].expand(8, -1))) == {"gap_closed"}


@pytest.mark.parametrize("timesteps", [2, 100, 1000])
def test_the_gap_is_measured_in_the_middle_of_any_schedule(timesteps: int, task: Task) -> None:
    """t = 200 … 800 of 1000, and as far along a shorter one."""
    model = tiny_model()
    schedule = replace(model.config.schedule, timesteps=timesteps)
    parts = model.dpm, model.gradient_estimator, model.encoder
    model = Model(replace(model.config, schedule=schedule), *parts)
    stage = stage_of("autoencoder", model, task)
    assert all(math.isfinite(value) for value in stage.measure().values())
    first, last = {2: (0, 1), 100: (20, 79), 1000: (200, 800)}[timesteps]
    x_0, t, eps = held_out_noise(model, task.held_out, first, last)
    plain, shifted = gap_residuals(model, x_0, t, eps, model.encode_z(x_0))
    assert stage.measure()["gap_closed"] == pytest.approx((1 - shifted / plain).mean().item())
