"""What a folder holds already: what training goes on with, and what it never replaces."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_runs import outputs
from conftest import Command, tiny_model
from safetensors.torch import load_file
from small_runs import OPTIONS, SHAPE, TINY, assert_equal, folder_of, quiet, stage_of, task_of

from pdae_cli.checkpoints import read_model, write_model
from pdae_cli.engine.model import Model
from pdae_cli.errors import UsageError
from pdae_cli.networks.first_stage import FirstStage, FirstStageConfig
from pdae_cli.training.autoencoder import with_autoencoder
from pdae_cli.training.dpm import new_dpm
from pdae_cli.training.loop import Training
from pdae_cli.training.stage import Rows

LOOP = ("--batch-size", 8, "--log-every", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with two attributes, which don't go together."""
    folder = folder_of(tmp_path_factory.mktemp("folders") / "photos")
    rows = "".join(f"{n}.png,{n % 2},{n // 2 % 2},{n % 3 // 2}\n" for n in range(24))
    (folder / "labels.csv").write_text(f"file,smiling,hat,beard\n{rows}")
    return folder


@pytest.fixture
def trained(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model with attributes and a latent DPM."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "trained"))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A model without them."""
    write_model(tmp_path / "plain", tiny_model())
    return tmp_path / "plain"


def stages(folder: Path) -> list[tuple[object, object]]:
    return [(run["stage"], run["images"]) for run in read_model(folder, "m").config.training]


@pytest.mark.parametrize(
    "command",
    [
        ("encoder", "--dpm", "{}", "--z-dim", 6),
        ("autoencoder", "--dpm", "{}"),
        ("autoencoder", "--dpm", "{}", "--condition", "hat"),
        ("dpm", *TINY),
        ("diffae", *TINY),
    ],
    ids=lambda command: "-".join(map(str, command[:4:3])),
)
def test_a_trained_model_is_never_replaced_by_an_untrained_one(
    command: tuple[object, ...], pdae: Command, photos: Path, trained: Path
) -> None:
    before = outputs(trained)
    words = [str(word).format(trained) for word in command]
    result = pdae("train", words[0], photos, *words[1:], "-o", trained, *LOOP, "--images", 8)
    assert result.code == 2 and "which this run would replace; choose another -o" in result.err
    assert outputs(trained) == before


def test_nor_one_of_another_program(pdae: Command, photos: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):  # one alone is enough
        (tmp_path / name).write_text('{"_class_name": "UNet2DModel"}')
        result = pdae("train", "dpm", photos, "-o", tmp_path, *TINY, "--images", 8)
        assert result.code == 2 and "holds a model" in result.err
        (tmp_path / name).unlink()


def test_nor_one_that_another_stage_went_on_with(
    pdae: Command, photos: Path, plain: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    command = ("train", "encoder", photos, "--dpm", plain, "-o", begun, "--z-dim", 6, *LOOP)
    assert pdae(*command, "--images", 8).code == 0
    on = ("train", "autoencoder", photos, "--init-from", begun, "-o", begun, *LOOP)
    assert pdae(*on, "--images", 8).code == 0
    assert stages(begun) == [("encoder", 8), ("autoencoder", 8)]
    before = outputs(begun)
    assert pdae(*command, "--images", 8).code == 0  # done: a script of both can be run again
    assert pdae(*command, "--images", 16).code == 2
    assert outputs(begun) == before
    assert pdae(*on, "--images", 8).code == 0


def test_nor_one_beside_which_something_else_was_trained(
    pdae: Command, photos: Path, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    begin = ("train", "dpm", photos, *TINY, "--images", 8, "-o")
    assert pdae(*begin, run).code == 0
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("training"))
    classify = ("train", "classifier", photos, "--dpm", other, "--condition", "hat", *LOOP)
    assert pdae(*classify, "-o", other, "--images", 8).code == 0
    assert pdae(*begin, run).code == 0
    refused = pdae(*begin, other)
    assert refused.code == 2 and "holds a model" in refused.err


def test_nor_a_classifier_or_a_latent_dpm(pdae: Command, photos: Path, trained: Path) -> None:
    """Unless a run of its own has left its log."""
    latent = ("train", "latent", photos, "-m", trained, *LOOP, "--images", 8)
    refused = pdae(*latent)
    assert refused.code == 2 and "move latent_dpm.safetensors away first" in refused.err
    (trained / "latent_dpm.safetensors").unlink()
    assert pdae(*latent).code == 0
    (trained / "training" / "latent.safetensors").unlink()
    assert pdae(*latent).code == 0
    classify = ("train", "classifier", photos, "--dpm", trained, "--condition", "hat", *LOOP)
    assert pdae(*classify, "-o", trained, "--images", 8).code == 0
    shutil.rmtree(trained / "training")
    refused = pdae(*classify, "-o", trained, "--images", 8)
    assert refused.code == 2 and "holds a classifier, which this run would replace" in refused.err


def test_another_eps_theta_leaves_behind_what_was_trained_against_the_old_one(
    pdae: Command, photos: Path, plain: Path, tmp_path: Path
) -> None:
    """Also how that was trained; alone, it goes on in place."""
    run = tmp_path / "run"
    command = ("train", "dpm", photos, *TINY, "--prediction", "eps", "--init-from")
    done = pdae(*command, plain, "-o", run, "--images", 8)
    assert done.code == 0, done.err
    assert f"of {plain} eps_theta alone goes on" in done.err
    model = read_model(run, "m")
    assert model.networks() == [model.dpm] and model.config.z_dim is None
    assert stages(run) == [("dpm", 8)]
    again = pdae(*command, run, "-o", run, "--images", 16)
    assert again.code == 0 and "goes on;" not in again.err
    refused = pdae(*command, plain, "-o", plain, "--images", 8)
    assert refused.code == 2 and "holds a model, which this run would replace" in refused.err


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_in_place_a_run_goes_on_and_is_recorded_once(
    dtype: str, pdae: Command, photos: Path, plain: Path
) -> None:
    """In 16 bits as well, which round what the run leaves frozen."""
    command = ("train", "autoencoder", photos, "--init-from", plain, "-o", plain, *LOOP)
    for images in (8, 16, 24):
        done = pdae(*command, "--images", images, "--weights-dtype", dtype)
        assert done.code == 0, done.err
        assert stages(plain) == [("autoencoder", images)]


def test_what_new_z_would_make_wrong_is_named(pdae: Command, photos: Path, trained: Path) -> None:
    command = ("train", "autoencoder", photos, "--init-from", trained, *LOOP, "--images", 8)
    refused = pdae(*command, "-o", trained)
    names = "attributes.safetensors and latent_dpm.safetensors"
    assert refused.code == 2 and f"has {names}, made for a z that this run changes" in refused.err
    known = read_model(trained, "m").config.normalisation
    assert pdae(*command, "-o", trained, "--freeze-encoder").code == 0
    assert read_model(trained, "m").config.normalisation == known


def test_a_frozen_encoder_is_the_folders_own(
    pdae: Command, photos: Path, trained: Path, plain: Path
) -> None:
    """Another's would leave attributes behind as much as one that learns."""
    command = ("train", "autoencoder", photos, "--freeze-encoder", *LOOP, "--images", 8)
    assert pdae(*command, "--init-from", trained, "-o", trained).code == 0
    (trained / "training" / "autoencoder.safetensors").unlink()
    refused = pdae(*command, "--init-from", plain, "-o", trained)
    assert refused.code == 2 and "made for a z that this run changes" in refused.err


def test_a_run_that_is_done_leaves_what_was_made_of_it(
    pdae: Command, photos: Path, plain: Path, tmp_path: Path
) -> None:
    """So that a script of commands can be run again."""
    run = tmp_path / "run"
    command = ("train", "autoencoder", photos, "--dpm", plain, "-o", run, "--z-dim", 6, *LOOP)
    fit = ("attributes", "fit", photos, "-m", run, "--overwrite")
    for _ in range(2):
        assert pdae(*command, "--images", 8).code == 0
        assert pdae(*fit).code == 0
    refused = pdae(*command, "--images", 16)
    assert refused.code == 2 and f"{run} has attributes.safetensors, made for" in refused.err
    (run / "attributes.safetensors").unlink()
    assert pdae(*command, "--images", 16).code == 0


@pytest.mark.parametrize(
    ("stage", "file"), [("dpm", "model.safetensors"), ("latent", "latent_dpm.safetensors")]
)
def test_what_a_run_that_is_done_made_is_made_again_where_it_is_gone(
    stage: str, file: str, photos: Path, tmp_path: Path
) -> None:
    """The state has all of it; the same command ended well and wrote nothing."""

    def train() -> None:
        run = stage_of(stage, tiny_model(), task_of(photos, tmp_path))
        Training(run, replace(OPTIONS, images=8), tmp_path).train(quiet)

    train()
    made = tmp_path / file
    before = load_file(made)
    made.unlink()
    train()
    assert_equal(load_file(made), before)
    touched = made.stat().st_mtime_ns
    train()
    assert made.stat().st_mtime_ns == touched


@pytest.mark.parametrize("stage", ["autoencoder", "classifier"])
def test_classes_keep_their_places(
    stage: str, pdae: Command, photos: Path, plain: Path, tmp_path: Path
) -> None:
    command = ("train", stage, photos, "--dpm", plain, "-o", tmp_path / "run", *LOOP)
    assert pdae(*command, "--images", 8, "--condition", "smiling,hat").code == 0
    for other in ("hat,smiling", "smiling,beard"):
        refused = pdae(*command, "--images", 16, "--condition", other)
        assert refused.code == 2
        assert f"classes smiling, hat → {other.replace(',', ', ')}" in refused.err
    assert pdae(*command, "--images", 16, "--condition", "smiling,hat").code == 0


def test_a_run_goes_on_with_the_pictures_that_it_began_with(
    pdae: Command, photos: Path, plain: Path, tmp_path: Path
) -> None:
    """Framed alike, with the same ones held out, and with the same labels."""
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    lines = (data / "labels.csv").read_text().splitlines()
    command = ("train", "autoencoder", data, "--dpm", plain, "-o", tmp_path / "run", *LOOP)
    command = (*command, "--condition", "smiling")
    assert pdae(*command, "--images", 8).code == 0
    refused = pdae(*command, "--images", 16, "--fit", "pad")
    assert refused.code == 2 and "other options (fit crop → pad)" in refused.err
    column = lines[0].split(",").index("smiling")
    rows = [line.split(",") for line in lines]
    turned = [[*r[:column], str(1 - int(r[column])), *r[column + 1 :]] for r in rows[1:]]
    (data / "labels.csv").write_text("\n".join(map(",".join, [rows[0], *turned])))
    refused = pdae(*command, "--images", 16)
    assert refused.code == 2 and "other options (other labels)" in refused.err
    (data / "labels.csv").write_text("\n".join(lines))
    shutil.copy(next(data.glob("*.png")), data / "more.png")
    refused = pdae(*command, "--images", 16)
    assert refused.code == 2 and "another list of pictures" in refused.err
    (data / "more.png").unlink()
    assert pdae(*command, "--images", 16).code == 0


@pytest.mark.parametrize(
    ("command", "size"),
    [
        (("autoencoder", "--dpm", "{}"), "--z-dim"),
        (("autoencoder", "--dpm", "{}", "--condition", "hat"), "--z-dim"),
        (("encoder", "--dpm", "{}", "--teacher", "{}"), "--z-dim"),
        (("classifier", "--dpm", "{}", "--condition", "hat"), "--base-channels"),
    ],
    ids=["autoencoder", "condition", "encoder", "classifier"],
)
def test_a_run_of_other_sizes_is_told_by_its_option(
    command: tuple[str, ...], size: str, plain: Path, pdae: Command, photos: Path, tmp_path: Path
) -> None:
    """And not as a damaged state, by the name of a tensor."""
    stage, *more = (one.format(plain) for one in command)
    run = ("train", stage, photos, *more, "-o", tmp_path / "run", *LOOP, "--images", 8)
    assert pdae(*run, size, 8).code == 0
    refused = pdae(*run, size, 16)
    assert refused.code == 2 and "begun with other options" in refused.err
    assert size in refused.err and "tensor '" not in refused.err


@pytest.mark.parametrize("again", [False, True])
def test_an_interruption_loses_no_metrics(again: bool, photos: Path, tmp_path: Path) -> None:
    """During the last save, or when the same command begins again."""

    def run_of(images: int) -> Training:
        stage = stage_of("dpm", tiny_model(), task_of(photos, tmp_path))
        return Training(stage, replace(OPTIONS, images=images), tmp_path)

    run = run_of(16)
    save = run.stage.save

    def interrupt(summary: dict[str, object]) -> None:
        save(summary)
        signal.raise_signal(signal.SIGINT)

    if again:
        run.train(quiet)
        run = run_of(32)
        run.batches = stopped  # type: ignore[method-assign]
    else:
        run.stage.save = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.train(quiet)
    (summary,) = read_model(tmp_path, "m").config.training
    assert summary["metrics"].keys() == {"held_out_loss"} and summary["images"] == 16


def stopped() -> Iterator[list[Rows]]:
    raise KeyboardInterrupt


def latent_dpm(seed: int) -> Model:
    """An eps_theta of a first stage's latents; another first stage for each seed."""
    torch.manual_seed(seed)
    blocks = ("DownEncoderBlock2D",), ("UpDecoderBlock2D",)
    cfg = FirstStageConfig("VQModel", 3, 3, *blocks, (8,), 1, 4, True, True, 16, 3, 1.0, 0.0)
    return new_dpm(0, "linear", "v", FirstStage(cfg), **SHAPE)


@pytest.mark.parametrize("kind", ["dpm", "classifier", "autoencoder", "conditional", "encoder"])
def test_the_first_stage_is_the_one_it_began_with(kind: str, photos: Path, tmp_path: Path) -> None:
    """Another's weights have the same shapes, and make other latents."""
    pytest.importorskip("diffusers")

    def run_of(seed: int) -> Training:
        model = latent_dpm(seed)
        if kind in ("autoencoder", "encoder"):
            model = with_autoencoder(model, 6, seed=0)
        stage = stage_of(kind, model, task_of(photos, tmp_path))
        return Training(stage, replace(OPTIONS, images=8), tmp_path)

    run_of(1).train(quiet)
    assert run_of(1).step == 1
    with pytest.raises(UsageError, match="another first stage"):
        run_of(2)


def test_labels_left_out_are_told(photos: Path, tmp_path: Path) -> None:
    """A run with labels is gone on with by none without: the settings of both are compared."""

    def run_of(kind: str) -> Training:
        stage = stage_of(kind, tiny_model(), task_of(photos, tmp_path))
        return Training(stage, replace(OPTIONS, images=8), tmp_path)

    run_of("conditional").train(quiet)
    with pytest.raises(UsageError, match=r"other labels, classes dark \| bright → None"):
        run_of("autoencoder")


def test_a_classifiers_noise_is_the_one_it_began_with(photos: Path, tmp_path: Path) -> None:
    def run_of(betas: str) -> Training:
        model = tiny_model()
        schedule = replace(model.config.schedule, betas=betas)
        model = Model(replace(model.config, schedule=schedule), model.dpm)
        stage = stage_of("classifier", model, task_of(photos, tmp_path))
        return Training(stage, replace(OPTIONS, images=8), tmp_path)

    run_of("linear").train(quiet)
    with pytest.raises(UsageError, match=r"schedule linear 1000 .* → cosine 1000"):
        run_of("cosine")


def test_a_latent_dpm_isnt_trained_on_for_another_z(photos: Path, tmp_path: Path) -> None:
    def run_of(seed: int) -> Training:
        stage = stage_of("latent", tiny_model(seed), task_of(photos, tmp_path))
        return Training(stage, OPTIONS, tmp_path)

    write_model(tmp_path, tiny_model(1))
    run_of(1).train(quiet)
    run_of(1)
    with pytest.raises(
        UsageError, match=r"frozen weights of another .*; .* without training/latent.safetensors"
    ):
        run_of(2)


def test_components_are_those_of_the_same_pictures(photos: Path, tmp_path: Path) -> None:
    def run_of(pictures: Path) -> Training:
        task = task_of(pictures, tmp_path / "run")
        return Training(stage_of("encoder", tiny_model(), task), OPTIONS, tmp_path / "run")

    run_of(photos).train(quiet)
    run_of(photos)
    other = Path(shutil.copytree(photos, tmp_path / "other"))
    shutil.copy(other / "1.png", other / "10.png")
    with pytest.raises(UsageError, match="principal components of other pictures"):
        run_of(other)


def test_weights_in_16_bits_have_the_same_fingerprint() -> None:
    from pdae_cli.engine.tensors import networks_sha

    network = tiny_model().dpm
    exact = networks_sha(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.half())
        assert networks_sha(network) == exact
        next(network.parameters()).mul_(1.01)
    assert networks_sha(network) != exact
