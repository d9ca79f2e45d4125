"""pdae train: one sub-command a stage; the same command resumes."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UsageError
from .data import Data
from .options import takes
from .output import Output
from .run.destination import writable
from .run.launch import asked, launched, meet, set_aside
from .train_options import LEARNING, NETWORK, ShapeFlags, TrainFlags, check_own, common

if TYPE_CHECKING:
    from ..engine.model import Model
    from ..training.data import Task
    from ..training.stage import Stage

app = typer.Typer(
    no_args_is_help=True,
    help="Train a model on your own pictures: dpm, then autoencoder, then latent.",
)

Z_DIM = 512
shape = partial(typer.Option, rich_help_panel=NETWORK)
learning = partial(typer.Option, rich_help_panel=LEARNING)

Folder = Annotated[
    Path, common("--output", "-o", help="Model folder; the same resumes.", callback=writable)
]
Dimensions = Annotated[
    int | None, shape(min=1, max=1 << 20, help=f"Dimensions of z; default: {Z_DIM}.")
]


def run(stage: Stage, flags: TrainFlags, task: Task, note: str = "") -> None:
    """Run the loop and show how it goes."""
    from ..training.data import names_sha
    from ..training.dpm import usual_batch
    from ..training.estimate import estimate, told
    from ..training.loop import Training
    from ..training.stage import TrainOptions

    size = flags.batch_size or usual_batch(task.train.size, flags.accelerated)
    learnt = {"held_out_sha": task.held_out_sha, "least_share": task.least_share}
    learnt |= {"names_sha": names_sha(task.train, task.held_out)}
    given = asdict(flags) | learnt | {"precision": flags.autocast(), "batch_size": size}
    options = TrainOptions(**{one.name: given[one.name] for one in fields(TrainOptions)})
    if launched()[1] > 1:
        meet(cpu=not flags.accelerated)
    training = Training(stage, options, task.folder, flags.device == "cpu", flags.trackers())
    out = Output(flags.json and training.rank == 0, flags.quiet or training.rank > 0)
    for line in set_aside(options.accumulate, options.compile):
        out.say(line)
    if asked("MIXED_PRECISION") not in ("no", options.precision):
        out.say(f"--precision {flags.precision} goes before the launcher's mixed precision")
    if note:
        out.say(note)
    if flags.dry_run:
        needs = estimate(training, task.dtype)
        for line in ("",) if out.json else told(needs):
            out.result(needs, line)
        return
    millions = sum(p.numel() for p in training.parameters.values()) / 1e6
    done = "" if training.step < training.steps else " (nothing is left to do)"
    out.say(
        f"{stage.name}: {millions:.2f} M parameters on {training.accelerator.device}, "
        f"{options.batch_size} rows a step, step {training.step} of {training.steps}{done}, "
        f"{len(stage.source)} pictures or codes; log and samples in {training.folder}"
    )
    with out.progress(stage.name, options.images) as bar:

        def report(record: dict[str, object]) -> None:
            note = " ".join(
                f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float)
            )
            bar.advance_to(int(str(record["images"])), note)
            if out.json:
                out.result(record, "")
            elif not out.interactive:
                out.say(f"step {record['step']} images {record['images']} {note}")

        training.warn = out.warn
        training.train(report)


@app.command()
@takes(ShapeFlags)
def dpm(data: Data, output: Folder, options: ShapeFlags) -> None:
    """Train eps_theta, a diffusion model of the pictures.

    Example: pdae train dpm photos/ -o runs/dpm --image-size 64
    """
    from ..checkpoints import load
    from ..training.dpm import dpm_stage, eps_theta_of, new_dpm

    if options.init_from is None:
        model = new_dpm(**options.network())
        note = options.network_of(model)
    else:
        whole = options.going_on(load(options.init_from, device="cpu"))
        model = eps_theta_of(whole)
        behind = f"of {options.init_from} eps_theta alone goes on; what guides it stays behind"
        note = "" if model is whole else behind
    options.placed(model)
    task = options.task(data, output, model.config, by_z=False)
    run(dpm_stage(model, task), options, task, note)


@app.command()
@takes(TrainFlags, without=("channels_last", "checkpoint_activations"))
def encoder(
    data: Data,
    output: Folder,
    options: TrainFlags,
    dpm: Annotated[str, common(help="The pre-trained model, or a checkpoint.")],
    teacher: Annotated[str | None, common(help="Model whose z it is to learn too.")] = None,
    z_dim: Dimensions = None,
) -> None:
    """Teach E_phi what eps_theta knows of a picture: a head start for `autoencoder --init-from`.

    Example: pdae train encoder photos/ --dpm runs/dpm -o runs/begun
    """
    from ..checkpoints import load, load_dpm
    from ..checkpoints.find import terms
    from ..training.autoencoder import with_autoencoder
    from ..training.encoder import check_teacher, encoder_stage

    z_dim = z_dim or Z_DIM
    other = None if teacher is None else load(teacher, device="cpu")
    model = with_autoencoder(load_dpm(dpm, Output().say), z_dim, options.seed)
    if other is not None:
        check_teacher(model, other, z_dim)
        both = terms(model.config.licence, other.config.licence)
        model.config = replace(model.config, licence=both)
    task = options.task(data, output, options.placed(model).config, by_z=False)
    run(encoder_stage(model, task, other), options, task)


@app.command()
@takes(TrainFlags)
def autoencoder(
    data: Data,
    output: Folder,
    options: TrainFlags,
    dpm: Annotated[str | None, common(help="The pre-trained model, or a checkpoint.")] = None,
    init_from: Annotated[str | None, common(help="Or: go on with all of this model.")] = None,
    z_dim: Dimensions = None,
    condition: Annotated[str | None, shape(help="Labels a,b,… for G_psi: no encoder.")] = None,
    freeze_encoder: Annotated[
        bool, learning("--freeze-encoder", help="Train G_psi alone, of --init-from.")
    ] = False,
    weighting: Annotated[
        Literal["lambda", "v"], learning(help="Of timesteps: PDAE's, or v's error.")
    ] = "lambda",
    gamma: Annotated[
        float, learning(min=-10, max=10, help="Exponent of lambda: SNR^gamma / (1 + SNR).")
    ] = 0.1,
) -> None:
    """Train the encoder E_phi and the gradient estimator G_psi against a frozen eps_theta.

    Example: pdae train autoencoder photos/ --dpm runs/dpm -o runs/model
    """
    from ..checkpoints import load, load_dpm
    from ..training.autoencoder import Weighting, autoencoder_stage, with_autoencoder
    from ..training.conditional import conditional_stage, with_labels

    if (dpm is None) == (init_from is None):
        raise UsageError("give either --dpm, to train new parts, or --init-from, to go on with old")
    if freeze_encoder and (dpm is not None or condition is not None):
        raise UsageError(
            "--freeze-encoder leaves the E_phi of --init-from as it is; without that "
            "there is none to leave"
        )
    how = Weighting(weighting, gamma)
    if weighting == "v" and gamma != Weighting().gamma:
        raise UsageError("--gamma is of --weighting lambda; leave it out")
    labels = None if condition is None else options.condition(data, condition)
    if init_from is not None:
        model: Model = load(init_from, device="cpu")
        if labels is None and (model.gradient_estimator is None or model.encoder is None):
            raise UsageError(f"{init_from} has no encoder and gradient estimator; use --dpm")
        theirs = model.config.labels
        if labels is not None and (theirs is None or theirs.classes != labels.classes):
            raise UsageError(f"{init_from} has no G_psi that takes these labels; use --dpm")
        check_own("z_dim", z_dim, model.config.z_dim)
    else:
        plain, size = load_dpm(str(dpm), Output().say), z_dim or Z_DIM
        if labels is not None:
            model = with_labels(plain, labels.classes, size, options.seed)
        else:
            model = with_autoencoder(plain, size, options.seed)
    task = options.task(data, output, options.placed(model).config)
    if labels is not None:
        run(conditional_stage(model, task, labels, how), options, task)
    else:
        run(autoencoder_stage(model, task, how, freeze_encoder), options, task)


@app.command()
@takes(TrainFlags, without=("flip", "channels_last", "checkpoint_activations", "licence"))
def latent(
    data: Data,
    model_name: Annotated[
        str,
        common("--model", "-m", envvar="PDAE_MODEL", help="The model that gets a latent DPM."),
    ],
    options: TrainFlags,
    width: Annotated[int, shape(min=1, max=1 << 20, help="Of the hidden layers.")] = 512,
    layers: Annotated[int, shape(min=2, max=256, help="Of the MLP.")] = 10,
    dropout: Annotated[float, shape(min=0, max=1, help="In every layer.")] = 0.0,
) -> None:
    """Train the latent DPM, which `pdae sample` draws z from.

    It learns z of mirrored pictures too, unless the model was trained with --no-flip.

    Example: pdae train latent photos/ --model runs/model
    """
    from ..checkpoints import load, writable_folder
    from ..training.latent import latent_stage

    folder = writable_folder(model_name)
    model = options.placed(load(model_name, device="cpu"))
    task = options.task(data, folder, model.config, by_z=False)
    run(latent_stage(model, task, width, layers, dropout, options.seed), options, task)


@app.command()
@takes(ShapeFlags)
def diffae(data: Data, output: Folder, options: ShapeFlags, z_dim: Dimensions = None) -> None:
    """Train a Diff-AE to compare with: E_phi and an eps_theta that takes z, both from scratch.

    Example: pdae train diffae photos/ -o runs/diffae --image-size 64
    """
    from ..checkpoints import load
    from ..training.diffae import diffae_stage, new_diffae

    if options.init_from is None:
        model = new_diffae(z_dim=z_dim or Z_DIM, **options.network())
    else:
        model = load(options.init_from, device="cpu")
        if not model.takes_z or model.encoder is None:
            raise UsageError(f"{options.init_from} is no Diff-AE; leave --init-from out")
        check_own("z_dim", z_dim, options.going_on(model).config.z_dim)
    task = options.task(data, output, options.placed(model).config)
    run(diffae_stage(model, task), options, task, options.network_of(model))


@app.command()
@takes(TrainFlags, without=("licence",))
def classifier(
    data: Data,
    output: Folder,
    options: TrainFlags,
    dpm: Annotated[str, common(help="The model that it is to guide: name, folder, Hub id.")],
    condition: Annotated[str, common(help="Columns of the labels, a,b,….")],
    base_channels: Annotated[int, shape(min=1, help="Width of the first level.")] = 64,
) -> None:
    """Train a classifier of noisy pictures, whose gradient guides `pdae sample --classifier`.

    Example: pdae train classifier photos/ --dpm runs/dpm --condition smiling -o runs/classifier
    """
    from ..checkpoints import load_dpm
    from ..training.classifier import classifier_stage, new_classifier

    labels = options.condition(data, condition)
    model = options.placed(load_dpm(dpm, Output().say))
    network = new_classifier(model, labels.classes, base_channels, options.seed)
    task = options.task(data, output, model.config, by_z=False)
    run(classifier_stage(model, network, task, labels), options, task)
