"""The model: two heads in one pass, codes and pictures, edits, and what they don't depend on."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import picture, tiny_model

from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.trajectory import PRESETS, Sampling
from pdae_cli.engine.codes import stack
from pdae_cli.engine.model import Model
from pdae_cli.errors import InputError, ModelError, OutOfMemory, UsageError

STEPS = {"inference_steps": 5}


def pictures_of(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=generator(3)) * 2 - 1


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Equal to a share of the largest value. Decoding scales x_T by 1/sqrt(alpha_bar_T) = 158; a
    trained eps_theta takes that back and a random one doesn't: 1e-5 there is 1e-7 before."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1))


def test_a_pickled_model_makes_the_same(model: Model) -> None:
    """As data loaders and process pools send it."""
    codes = model.encode(pictures_of(1), **STEPS)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other.decode(codes), model.decode(codes))


def test_the_encoder_is_a_module_and_can_be_called(model: Model) -> None:
    """On the model's device and in float32 it gives what `encode_z` does."""
    x = pictures_of(2)
    assert isinstance(model.encoder, torch.nn.Module)
    with torch.no_grad():
        assert torch.equal(model.encoder(x), model.encode_z(x))
    assert not model.encoder(x).requires_grad


def test_torchs_compiler_isnt_imported_before_it_is_needed() -> None:
    """It takes as long as all the rest of a command's start."""
    code = "import sys; import pdae_cli.engine.model; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_predict_gives_both_heads(model: Model) -> None:
    x, t, z = pictures_of(2), torch.tensor([5, 700]), torch.randn(2, 6)
    eps, gradient = model.predict(x, t, z)
    assert gradient is not None
    with torch.no_grad():
        assert torch.equal(eps, model.dpm(x, t))
    alone, nothing = model.predict(x, t, None)
    assert torch.equal(alone, eps) and nothing is None


def test_v_prediction_is_eps_by_another_name() -> None:
    """eps = sqrt(alpha_bar) F + sqrt(1 - alpha_bar) x_t, for a network that outputs F; then
    F = v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0."""
    model = tiny_model(prediction="v")
    x_0, eps, t = pictures_of(2), torch.randn(2, 3, 32, 32), torch.tensor([20, 980])
    x_t = model.schedule.add_noise(x_0, t, eps)
    predicted, gradient = model.predict(x_t, t, torch.zeros(2, 6))
    assert gradient is not None and model.gradient_estimator is not None
    alpha_bar = model.schedule.alpha_bar[t][:, None, None, None]  # float64, as 1 - alpha_bar needs
    signal, noise = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    with torch.no_grad():
        time = model.dpm.time(t)
        features = model.dpm.input(x_t, model.dpm.input.modulation(time))
        output = model.dpm.output(features, model.dpm.output.modulation(time))
        shift = model.gradient_estimator(features, time, torch.zeros(2, 6))
    assert torch.allclose(predicted, signal * output + noise * x_t)
    assert torch.allclose(gradient, signal.sqrt() * shift)
    perfect = signal * (signal * eps - noise * x_0) + noise * x_t
    assert torch.allclose(perfect, eps, atol=1e-5)


def test_guidance_moves_eps_against_the_gradient(model: Model) -> None:
    """eps^ = eps_theta - sqrt(1 - alpha_bar_t) w G_psi (PDAE eq. 9)."""
    x, z = pictures_of(2), torch.randn(2, 6)
    for w in (0.0, 1.0, 2.5):
        sampling = Sampling(guidance=w)
        t = model.trajectory(sampling).timesteps()[12]
        guided = model.guided(sampling, z)(x, t)
        eps, gradient = model.predict(x, torch.tensor([t, t]), z)
        assert gradient is not None
        expected = eps - math.sqrt(1 - model.schedule.alpha_bar[t].item()) * w * gradient
        assert torch.allclose(guided, expected, atol=1e-6)


def test_guidance_is_confined_to_its_interval(model: Model) -> None:
    x, z = pictures_of(1), torch.randn(1, 6)
    all_of_them = {"inference_steps": 999, "spacing": "uniform"}
    predict = model.guided(Sampling(guide_from=600, guide_until=300, **all_of_them), z)
    for t, inside in ((601, False), (600, True), (300, True), (299, False)):
        eps, _ = model.predict(x, torch.tensor([t]), None)
        assert torch.allclose(predict(x, t), eps, rtol=0, atol=1e-6) is not inside


@pytest.mark.parametrize(
    ("settings", "error"),
    [(PRESETS["exact"], 1e-5), (PRESETS["archival"], 1e-5),
     ({"inference_steps": 12, "corrections": 1}, 1e-2)],
)  # fmt: skip
def test_decode_undoes_encode(settings: dict[str, Any], error: float) -> None:
    model, x = tiny_model(prediction="v"), pictures_of(2)
    codes = model.encode(x, **settings)
    assert codes.z.shape == (2, 6) and codes.x_T is not None and codes.x_T.shape == x.shape
    assert (model.decode(codes) - x).abs().max() < error
    assert codes.converged == ((True, True) if settings.get("corrections") else ())
    # Random eps weights: the ODE multiplies an error by up to 158, and codes say so.
    assert tiny_model().encode(x, corrections=2).converged == (False, False)


def test_corrections_are_of_encoding_alone() -> None:
    """Codes by another way are those that record none; and decoding is told of none."""
    model, x = tiny_model(prediction="v"), pictures_of(1)
    codes = model.encode(x, inference_steps=3, corrections=1)
    plain = replace(codes, sampling=codes.sampling | {"corrections": 0})
    for way in ({"solver": "leapfrog"}, {"parity": "diffusers"}, {"corrections": 2}):
        assert torch.equal(model.decode(codes, **way), model.decode(plain, **way))
    with pytest.raises(UsageError, match="leave solver, spacing and corrections out"):
        model.decode(codes, parity="pdae", solver="ddim")


@pytest.mark.parametrize("mode", ["latent", "trajectory"])
def test_midpoints_of_a_picture_with_itself_are_that_picture(mode: str) -> None:
    """Solved back exactly, so the second state takes part between the ends too."""
    model = tiny_model(prediction="v")
    codes = model.encode(x := pictures_of(1), **PRESETS["archival"])
    way = model.interpolate(stack([codes, codes]), [0.3], mode=mode)
    assert close(way, x, 1e-4)
    assert not close(model.decode(replace(codes, residual_T=None)), x, 1e-4)


def test_an_edit_keeps_what_the_second_state_differs_by() -> None:
    """Leapfrog's eps_T is eps at x_T and residual_T, whatever z: an edit of nothing is exact, and
    the smaller an edit the nearer to that. Other steps have no use for it."""
    model = tiny_model(prediction="v")
    codes = model.encode(x := pictures_of(1), **PRESETS["archival"])
    assert codes.residual_T is not None
    begun_anew = model.decode(replace(codes, residual_T=None))
    assert not close(begun_anew, x, 1e-4)
    for scale in (0.0, 1e-4):
        assert close(model.decode(model.manipulate(codes, [("smiling", scale)])), x, 1e-4)
    moved = model.manipulate(codes, [("smiling", 2.0)])
    assert codes.x_T is not None and moved.x_T is not None
    trajectory = model.trajectory(Sampling().changed(codes.sampling))
    eps = model.guided(trajectory.sampling, moved.z)(moved.x_T, trajectory.grid()[0].t)
    solve, predict = trajectory.solver.solve, model.guided(trajectory.sampling, moved.z)
    by_hand, _ = solve(predict, moved.x_T, trajectory.grid(), eps + codes.residual_T)
    assert close(model.decode(moved), by_hand, 1e-5)
    coarser = model.decode(codes, inference_steps=5)
    assert torch.equal(coarser, model.decode(replace(codes, residual_T=None), inference_steps=5))


@pytest.mark.parametrize("mode", ["latent", "trajectory"])
@pytest.mark.parametrize("settings", [{}, PRESETS["archival"], {"solver": "ddpm"}])
def test_interpolation_ends_are_the_reconstructions(mode: str, settings: dict[str, Any]) -> None:
    """To the bit, whatever the solver."""
    model = tiny_model(prediction="v")
    codes = model.encode(pictures_of(2), **{"inference_steps": 6} | settings)
    back = model.decode(codes)
    for count in (2, 5):
        way = model.interpolate(codes, count, mode=mode)
        assert len(way) == count and torch.equal(way[[0, -1]], back)
        assert (way.diff(dim=0).abs().amax((1, 2, 3)) > 1e-3).all()


def test_a_batch_that_doesnt_fit_is_halved_and_said() -> None:
    """Results are those of a batch that fits; a single picture that doesn't is an error."""
    model, x = tiny_model(prediction="v"), pictures_of(5)
    model.batch_size = 2
    expected = model.decode(model.encode(x, **STEPS), solver="ddpm")
    told: list[str] = []
    for room, fits in ((2, True), (0, False)):
        model = tiny_model(prediction="v")
        model.notify, at = told.append, model.heads.at

        def crowded(
            x: torch.Tensor, *rest: Any, room: int = room, at: Any = at, **named: Any
        ) -> Any:
            if len(x) > room:
                raise torch.OutOfMemoryError("out of memory")
            return at(x, *rest, **named)

        model.heads.at = crowded  # type: ignore[method-assign]
        if fits:
            made = model.decode(model.encode(x, **STEPS), solver="ddpm")
            assert torch.equal(made, expected) and model.batch_size == 2
            assert len(told) == 1 and "2 at once" in told[0]
        else:
            with pytest.raises(OutOfMemory, match="smaller --batch-size"):
                model.encode(x, **STEPS)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate")]
)
def test_so_is_one_whose_copies_or_gradients_dont_fit(error: RuntimeError) -> None:
    """What runs out of memory outside of the networks."""
    model, x = tiny_model(prediction="v"), pictures_of(3)
    expected, encode_z, room = model.encode(x, noise=False).z, model.encode_z, 1

    def crowded(x_0: torch.Tensor) -> torch.Tensor:
        if len(x_0) > room:
            raise error
        return encode_z(x_0)

    model.encode_z = crowded  # type: ignore[method-assign]
    assert torch.equal(model.encode(x, noise=False).z, expected) and model.batch_size == 1
    room = 0
    with pytest.raises(OutOfMemory, match="smaller --batch-size"):
        model.encode(x, noise=False)


def test_what_is_made_leaves_the_device_part_by_part(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it holds the results of one batch, however many are made."""
    seen, cpu = list[Any](), torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda one: (seen.append(len(one)), cpu(one))[1])
    model.batch_size = 2
    made = model.by_rows(5, lambda rows: (seen.append(rows), torch.arange(5.0)[rows])[1])
    assert seen == [slice(0, 2), 2, slice(2, 4), 2, slice(4, 5), 1]
    assert made.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("settings", [{}, *PRESETS.values(), {"solver": "pc"}, {"parity": "pdae"}])
def test_evaluations_are_those_that_are_made(settings: dict[str, Any]) -> None:
    model, asked = tiny_model(prediction="v"), []
    at = model.heads.at

    def counted(x: torch.Tensor, *rest: Any, **named: Any) -> Any:
        asked.append(len(x))
        return at(x, *rest, **named)

    model.heads.at = counted  # type: ignore[method-assign]
    codes = model.encode(pictures_of(1), **settings)
    encoding = len(asked)
    model.decode(codes)
    assert model.trajectory(Sampling(**settings)).evaluations() == (encoding, len(asked) - encoding)


def test_results_dont_depend_on_batch_size(model: Model) -> None:
    """Pictures computed one by one and all at once are the same to the bit."""
    x = pictures_of(33)
    results = []
    given = model.encode(x, **STEPS)
    for batch_size in (1, 2, 7, 32):
        model.batch_size = batch_size
        codes = model.encode(x, **STEPS)
        samples, z = model.sample(5, seed=4, **STEPS)
        ancestral, _ = model.sample(5, seed=4, solver="ddpm", **STEPS)
        results.append((codes.z, codes.x_T, model.decode(given), samples, z, ancestral))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a is not None and b is not None
            assert torch.equal(a, b)


def test_samples_depend_on_their_number_alone(model: Model) -> None:
    together, _ = model.sample(4, seed=1, **STEPS)
    later, _ = model.sample([2, 3], seed=1, **STEPS)
    assert torch.equal(together[2:], later)
    other, _ = model.sample(2, seed=2, **STEPS)
    assert not torch.allclose(together[:2], other, atol=1e-2)


def test_manipulation_is_the_papers_formula(model: Model) -> None:
    """z' = denorm(norm(z) + s sqrt(dim z) w/|w|), x_T stays."""
    assert model.attributes is not None and model.config.normalisation is not None
    codes = model.encode(pictures_of(2), **STEPS)
    moved = model.manipulate(codes, [("smiling", 0.3)])
    w = model.attributes.weight[0]
    std = torch.tensor(model.config.normalisation.std)
    expected = codes.z + std * 0.3 * math.sqrt(6) * w / w.norm()
    assert torch.allclose(moved.z, expected, atol=1e-5)
    assert moved.x_T is codes.x_T
    assert ((model.scores(moved) - model.scores(codes))[:, 0] > 0).all()


def test_codes_of_another_model_are_refused(model: Model) -> None:
    codes = model.encode(pictures_of(1), **STEPS)
    model.weights_sha = "b" * 64
    with pytest.raises(InputError, match="another model"):
        model.decode(replace(codes, weights_sha="a" * 64))
    with pytest.raises(InputError, match="dimensions"):
        tiny_model(z_dim=9).decode(codes)


def test_z_alone_needs_random_noise(model: Model) -> None:
    """Which is drawn per picture, whatever the order."""
    codes = model.encode(pictures_of(2), noise=False)
    assert codes.x_T is None
    with pytest.raises(InputError, match=r"--no-noise.*--random-noise"):
        model.decode(codes)
    both = model.decode(codes, random_noise=True, **STEPS)
    assert torch.equal(both[1:], model.decode(codes[1:], random_noise=True, **STEPS))


def test_random_numbers_are_named_by_rows_that_have_no_picture(model: Model) -> None:
    """As those of codes that somebody else computes: each row has its own, whatever is beside."""
    codes = replace(model.encode(pictures_of(2), **STEPS), picture_shas=())
    for how in ({"random_noise": True}, {"solver": "ddpm"}):
        both = model.decode(codes, **STEPS, **how)  # type: ignore[arg-type]
        alone = model.decode(codes[1:], **STEPS, **how)  # type: ignore[arg-type]
        assert torch.equal(both[1:], alone)
    ends = [model.interpolate(codes, 2, seed=seed, solver="ddpm", **STEPS) for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_no_pictures_are_a_line(model: Model) -> None:
    codes = model.encode(pictures_of(2), **STEPS)
    with pytest.raises(InputError, match="no pictures"):
        model.encode(pictures_of(2)[:0])
    for made in (model.decode, lambda none: model.manipulate(none, [("smiling", 0.3)])):
        with pytest.raises(InputError, match="no rows"):
            made(codes[:0])
    for count in (0, []):
        with pytest.raises(UsageError, match="no pictures to make"):
            model.sample(count)
    for count in (0, [], -1):
        with pytest.raises(UsageError, match="no pictures to make"):
            model.interpolate(codes, count)


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_timestep_that_the_schedule_hasnt_got_is_refused(model: Model, t: int) -> None:
    with pytest.raises(UsageError, match=f"timesteps are 0 … 999, not {t}"):
        model.predict(pictures_of(2), torch.tensor([5, t]), None)


def test_parts_that_a_model_lacks_are_named(model: Model) -> None:
    plain = Model(model.config, model.dpm)
    assert plain.encoder is None and plain.gradient_estimator is None
    with pytest.raises(ModelError, match="encoder"):
        plain.encode(pictures_of(1))
    with pytest.raises(ModelError, match="gradient estimator"):
        plain.predict(pictures_of(1), torch.tensor([1]), torch.randn(1, 6))
    pictures, z = plain.sample(1, unconditional=True, **STEPS)
    assert pictures.shape == (1, 3, 32, 32) and z is None


def test_pictures_come_as_tensors_pillow_or_paths(model: Model, tmp_path) -> None:  # type: ignore[no-untyped-def]
    image = picture(size=(32, 32))
    path = tmp_path / "one.png"
    image.save(path)
    assert torch.equal(model.pictures(image), model.pictures([str(path)]))
    assert torch.equal(model.pictures(path), model.pictures([image]))
    with pytest.raises(InputError, match="don't fit"):
        model.pictures(torch.zeros(1, 3, 16, 16))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu(model: Model) -> None:
    x = pictures_of(2)
    on_cpu = model.encode(x, **STEPS)
    on_gpu = tiny_model().to("cuda").encode(x, **STEPS)
    assert torch.allclose(on_cpu.z, on_gpu.z, atol=1e-3)


class TestParity:
    """Other programs' procedures; that the numbers are theirs is shown in test_golden.py."""

    @pytest.mark.parametrize("program", ["pdae", "diffae", "diffusers"])
    def test_codes_record_it_and_are_decoded_by_it(self, model: Model, program: str) -> None:
        x_0 = pictures_of(1).clamp(-1, 1)
        codes = model.encode(x_0, parity=program, inference_steps=4)
        assert codes.sampling["parity"] == program
        plain = model.encode(x_0, inference_steps=4)
        assert codes.x_T is not None and plain.x_T is not None
        assert not torch.allclose(codes.x_T, plain.x_T, atol=1e-2)
        assert torch.equal(model.decode(codes), model.decode(codes, parity=program))
        assert model.trajectory(Sampling(parity=program, inference_steps=4)).evaluations() == (4, 4)

    def test_edits_move_by_the_authors_constant(self, model: Model) -> None:
        codes = model.encode(pictures_of(1), parity="pdae", inference_steps=2)
        moved = model.normalise(model.manipulate(codes, [("smiling", 0.3)]).z)
        length = (moved - model.normalise(codes.z)).norm().item()
        assert length == pytest.approx(0.3 * 512**0.5, rel=1e-4)
