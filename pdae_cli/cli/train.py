"""pdae train: one sub-command a stage; the same command resumes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UsageError
from .data import labels_of, named, open_data
from .options import numbers, option, split_names, takes
from .output import Output
from .run.destination import writable
from .run.launch import asked, check_training, device_of, launched, set_aside

if TYPE_CHECKING:
    from ..engine.config import ModelConfig
    from ..engine.model import Model
    from ..training.conditional import Condition
    from ..training.data import Task
    from ..training.stage import Stage

PRECISIONS = {"float32": "no", "bfloat16": "bf16"}  # accelerate's names
NETWORK, LEARNING, COMPUTING = "Network", "Learning", "Computing"  # panels of --help
TELLING = "Output and log"
USUAL = "default: as suits device and size"

app = typer.Typer(
    no_args_is_help=True,
    help="Train a model on your own pictures: dpm, then autoencoder, then latent.",
)

common = typer.Option
shape = partial(typer.Option, rich_help_panel=NETWORK)
learning = partial(typer.Option, rich_help_panel=LEARNING)

Data = Annotated[Path, typer.Argument(help="Folder, zip, '*.parquet', '{00..99}.tar', Hub id.")]
Folder = Annotated[
    Path, common("--output", "-o", help="Model folder; the same resumes.", callback=writable)
]
Dimensions = Annotated[int, shape(min=1, help="Dimensions of z.")]


@dataclass(frozen=True)
class TrainFlags:
    """Options of every stage."""

    images: int = option(4_000_000, None, "Pictures to see in all.", min=1)
    batch_size: int | None = option(None, None, f"Pictures a step, all processes; {USUAL}.", min=1)
    lr: float = option(2e-4, None, "Learning rate.")
    labels: Annotated[
        Path | None, common(help="Table of labels; its `split` holds pictures out.")
    ] = None
    precision: Literal["float32", "bfloat16"] | None = option(None, None, "bfloat16 is autocast.")
    dry_run: bool = option(False, None, "Only say what it needs.", "--dry-run")
    fit: Literal["crop", "pad", "stretch"] = option(
        "crop", LEARNING, "Pictures that aren't square."
    )
    flip: bool = option(True, LEARNING, "Mirror half of the pictures.")
    optimizer: Literal["adam", "muon"] = option("adam", LEARNING, "Muon: orthogonal steps.")
    warmup: int = option(500, LEARNING, "Steps to reach the learning rate.", min=0)
    cooldown: float = option(0.0, LEARNING, "Share of the run to end it in.", min=0, max=1)
    grad_clip: float = option(1.0, LEARNING, "Largest gradient norm.", rare=True)
    ema_images: int = option(500_000, LEARNING, "Half-life of the average.", min=1)
    seed: int = option(0, LEARNING, "Fixes order, timesteps, noise and initial weights.")
    accumulate: int = option(1, COMPUTING, "Micro-batches a step.", min=1)
    channels_last: bool = option(False, COMPUTING, "GPUs like it.", "--channels-last", rare=True)
    compile: bool = option(False, COMPUTING, "torch.compile the step.", "--compile")
    checkpoint_activations: bool = option(
        False, COMPUTING, "Compute them twice: less memory, slower.", "--checkpoint-activations"
    )
    device: Literal["auto", "cpu"] = option(
        "auto", COMPUTING, "cpu leaves GPUs.", envvar="PDAE_DEVICE"
    )
    log_every: int = option(50, TELLING, "Steps between log lines.", min=1)
    save_every: int = option(2000, TELLING, "Steps between checkpoints.", min=1)
    weights_dtype: Literal["float32", "float16"] = option("float32", TELLING, "Of stored weights.")
    licence: str | None = option(None, TELLING, "What the data's terms are, for the model.")
    tracker: str = option("", TELLING, "Log there too: tensorboard,wandb,mlflow,….")
    tensorboard: bool = option(False, TELLING, "Gone.", "--tensorboard", rare=True)
    json: bool = option(False, TELLING, "JSON lines, of the log or --dry-run.", "--json")
    quiet: bool = option(False, TELLING, "Say nothing but failures.", "--quiet", "-q")

    def __post_init__(self) -> None:
        if self.tensorboard:
            raise UsageError("--tensorboard is --tracker tensorboard now")
        check_training()
        self.autocast()
        if self.tracker:
            self.trackers()

    def autocast(self) -> str:
        """Name the precision as accelerate does: --precision, else the launcher's."""
        theirs = asked("MIXED_PRECISION")
        if self.precision is None and theirs not in PRECISIONS.values():
            raise UsageError(f"the launcher asks for {theirs}; bf16 it can be, or give --precision")
        return theirs if self.precision is None else PRECISIONS[self.precision]

    def placed(self, model: Model) -> Model:
        """Put the model on this process's device, one of the machine's GPUs in turn or the CPU, and
        --licence into it if that was given."""
        from ..checkpoints.find import going_on

        model.config = going_on(model, self.licence)
        return model.to(device_of(self.device, launched()[0]) if self.accelerated else "cpu")

    @property
    def accelerated(self) -> bool:
        import torch

        return self.device != "cpu" and torch.accelerator.is_available()

    def task(self, data: Path, folder: Path, config: ModelConfig, by_z: bool = True) -> Task:
        """Open the pictures in the model's frame; hold some out, to be measured `by_z` or not."""
        import torch

        from ..training.data import Task, split

        out = Output(self.json, self.quiet or launched()[0] > 0)
        pictures = open_data(data, config.image_size, config.channels, out, self.fit, folder)
        dtype = torch.float16 if self.weights_dtype == "float16" else torch.float32
        train, held_out = split(pictures, labels_of(pictures, self.labels, self.quiet))
        with out.progress("read", len(pictures)) as bar:
            train, held_out = train.checked(bar.advance), held_out.checked(bar.advance)
        if by_z and len(held_out) == 1:
            out.say(
                "one picture is held out, so nothing is measured with another picture's z; more "
                "pictures, or a `split` column in the labels, hold out more"
            )
        return Task(train, held_out, folder, dtype, named(data))

    def condition(self, data: Path, columns: str) -> Condition:
        """Read the labels of these columns."""
        from ..training.conditional import condition
        from ..training.data import open_source
        from ..training.labels import find_labels

        names = open_source(data).names
        return condition(find_labels(data, self.labels, names), split_names(columns))

    def trackers(self) -> list[str]:
        """List --tracker's. Raises UsageError for one that isn't known or installed."""
        from accelerate import tracking

        for name in (names := split_names(self.tracker)):
            if name not in (known := tracking.LOGGER_TYPE_TO_CLASS):
                raise UsageError(f"no tracker {name!r}; known: {', '.join(known)}")
            if name not in map(str, tracking.get_available_trackers()):
                raise UsageError(f"--tracker {name} needs a package: pip install {name}")
        return names


def run(stage: Stage, flags: TrainFlags, task: Task, note: str = "") -> None:
    """Run the loop and show how it goes."""
    from ..training.dpm import usual_batch
    from ..training.estimate import estimate
    from ..training.loop import Training
    from ..training.stage import TrainOptions

    size = flags.batch_size or usual_batch(task.train.size, flags.accelerated)
    given = asdict(flags) | {"precision": flags.autocast(), "batch_size": size}
    options = TrainOptions(**{one.name: given[one.name] for one in fields(TrainOptions)})
    training = Training(stage, options, task.folder, flags.device == "cpu", flags.trackers())
    out = Output(flags.json and training.rank == 0, flags.quiet or training.rank > 0)
    for line in set_aside(options.accumulate, options.compile):
        out.say(line)
    if asked("MIXED_PRECISION") not in ("no", options.precision):
        out.say(f"--precision {flags.precision} goes before the launcher's mixed precision")
    if not training.sealed:
        out.say(f"{training.state_path} is an older version's, in which damage wouldn't show")
    if note:
        out.say(note)
    if flags.dry_run:
        return show_needs(out, estimate(training, task.dtype))
    millions = sum(p.numel() for p in training.parameters.values()) / 1e6
    out.say(
        f"{stage.name}: {millions:.2f} M parameters on {training.accelerator.device}, "
        f"{options.batch_size} rows a step, step {training.step} of {training.steps}, "
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

        training.train(report)


def show_needs(out: Output, needs: dict[str, Any]) -> None:
    """Print a dry run's record, or lines for people."""
    parts = ("memory", "weights", "gradients", "moments", "average", "activations")
    sizes = {n: f"{needs[f'{n}_bytes'] / 2**20:,.1f} MiB" for n in (*parts, "checkpoint", "free")}
    peak = f"{needs['peak_bytes'] / 2**20:,.0f} MiB in all, " if needs["peak_bytes"] else ""
    lines = (
        f"{needs['stage']} on {needs['processes']} x {needs['device']}: "
        f"{needs['parameters']:,} parameters, {needs['trained_parameters']:,} of them trained",
        f"memory a process: {peak}training itself {sizes['memory']} "
        f"({', '.join(f'{name} {sizes[name]}' for name in parts[1:])})",
        f"disk: {sizes['checkpoint']} a checkpoint, twice that while it is replaced; "
        f"{sizes['free']} free",
        f"time: {needs['seconds_a_step']:.3g} s a step, {needs['seconds_left'] / 3600:.3g} h for "
        f"{needs['steps_left']:,} steps, without metrics and sample sheets",
    )
    for line in ("",) if out.json else lines:
        out.result(needs, line)


@dataclass(frozen=True)
class ShapeFlags(TrainFlags):
    """What eps_theta is to be."""

    init_from: str | None = option(None, None, "Start from this model's weights.")
    image_size: int = option(64, None, "Height and width in pixels.")
    channels: int = option(3, NETWORK, "3 for colour, 1 for gray.")
    first_stage: str | None = option(None, NETWORK, "Diffuse the latents of diffusers' model.")
    patch: int | None = option(None, NETWORK, "Space-to-depth at the input, 1 is none.", rare=True)
    base_channels: int | None = option(None, NETWORK, f"Width of the first level; {USUAL}.")
    multipliers: str | None = option(None, NETWORK, "Width of each level / base; likewise.")
    blocks: int | None = option(None, NETWORK, "Residual blocks a level; likewise.")
    attention: str | None = option(None, NETWORK, "Attention at these map sizes; likewise.")
    head_channels: int | None = option(None, NETWORK, "Channels an attention head.", rare=True)
    dropout: float | None = option(None, NETWORK, "In every residual block; likewise.")
    betas: Literal["linear", "scaled_linear", "cosine", "constant"] = option(
        "linear", NETWORK, "Noise schedule."
    )
    prediction: Literal["v", "eps"] = option("v", NETWORK, "What the network outputs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is not None and self.first_stage is not None:
            raise UsageError("--init-from goes on with a model's own latents; leave --first-stage")

    def network(self) -> dict[str, Any]:
        """Choose the arguments of training.dpm.new_dpm."""
        from ..checkpoints import load_first_stage

        theirs = {one.name for one in fields(TrainFlags)} | {"init_from", "first_stage"}
        said = {name: one for name, one in asdict(self).items() if one is not None}
        chosen = {name: one for name, one in said.items() if name not in theirs}
        for name in chosen.keys() & {"multipliers", "attention"}:
            chosen[name] = tuple(numbers(chosen[name]))
        if self.first_stage is not None:
            chosen["first_stage"] = load_first_stage(self.first_stage, Output().say)
        return chosen | {"seed": self.seed, "accelerated": self.accelerated}

    def network_of(self, model: Model) -> str:
        """Tell what was chosen for the network, where the user left it open."""
        open_ = (self.base_channels, self.multipliers, self.blocks, self.attention, self.dropout)
        if None not in open_ or self.init_from is not None:
            return ""
        cfg, where = model.config.unet, "an accelerator" if self.accelerated else "a CPU"
        widths, maps = (",".join(map(str, one)) for one in (cfg.widths, cfg.attention))
        return (
            f"network: widths {widths}, {cfg.blocks} block(s) a level, attention at {maps}, "
            f"patch {cfg.patch}, dropout {cfg.dropout:g}, as suits {where}; see --help"
        )


@app.command()
@takes(ShapeFlags)
def dpm(data: Data, output: Folder, options: ShapeFlags) -> None:
    """Train eps_theta, a diffusion model of the pictures.

    Example: pdae train dpm photos/ -o runs/dpm --image-size 64
    """
    from ..training.dpm import dpm_stage, new_dpm

    name = options.init_from
    model = options.placed(new_dpm(**options.network()) if name is None else load_model(name))
    task = options.task(data, output, model.config, by_z=False)
    run(dpm_stage(model, task), options, task, options.network_of(model))


@app.command()
@takes(TrainFlags)
def autoencoder(
    data: Data,
    output: Folder,
    options: TrainFlags,
    dpm: Annotated[str | None, common(help="The pre-trained model, or a checkpoint.")] = None,
    init_from: Annotated[str | None, common(help="Or: go on with all of this model.")] = None,
    z_dim: Dimensions = 512,
    condition: Annotated[str | None, shape(help="Labels a,b,… for G_psi: no encoder.")] = None,
    weighting: Annotated[
        Literal["lambda", "v"], learning(help="Of timesteps: PDAE's, or v's error.")
    ] = "lambda",
    gamma: Annotated[float, learning(help="Exponent of lambda: SNR^gamma / (1 + SNR).")] = 0.1,
) -> None:
    """Train the encoder E_phi and the gradient estimator G_psi against a frozen eps_theta.

    Example: pdae train autoencoder photos/ --dpm runs/dpm -o runs/model
    """
    from ..checkpoints import load_dpm
    from ..training.autoencoder import Weighting, autoencoder_stage, with_autoencoder
    from ..training.conditional import conditional_stage, with_labels

    if (dpm is None) == (init_from is None):
        raise UsageError("give either --dpm, to train new parts, or --init-from, to go on with old")
    labels = None if condition is None else options.condition(data, condition)
    if init_from is not None:
        model = load_model(init_from)
        if labels is None and (model.gradient_estimator is None or model.encoder is None):
            raise UsageError(f"{init_from} has no encoder and gradient estimator; use --dpm")
        theirs = model.config.labels
        if labels is not None and (theirs is None or theirs.classes != labels.classes):
            raise UsageError(f"{init_from} has no G_psi that takes these labels; use --dpm")
    elif labels is not None:
        model = with_labels(load_dpm(str(dpm), Output().say), labels.classes, z_dim, options.seed)
    else:
        model = with_autoencoder(load_dpm(str(dpm), Output().say), z_dim, options.seed)
    task = options.task(data, output, options.placed(model).config)
    how = Weighting(weighting, gamma)
    if labels is not None:
        run(conditional_stage(model, task, labels, how), options, task)
    else:
        run(autoencoder_stage(model, task, how), options, task)


def load_model(name: str) -> Model:
    """Load a model on the CPU, where training takes over."""
    from ..checkpoints import load

    return load(name, device="cpu")


@app.command()
@takes(TrainFlags, without=("flip", "channels_last", "checkpoint_activations"))
def latent(
    data: Data,
    model_name: Annotated[str, common("--model", "-m", help="The model that gets a latent DPM.")],
    options: TrainFlags,
    width: Annotated[int, shape(min=1, help="Of the hidden layers.")] = 512,
    layers: Annotated[int, shape(min=2, help="Of the MLP.")] = 10,
    dropout: Annotated[float, shape(help="In every layer.")] = 0.0,
) -> None:
    """Train the latent DPM, which `pdae sample` draws z from.

    Example: pdae train latent photos/ --model runs/model
    """
    from ..checkpoints import writable_folder
    from ..training.latent import latent_stage

    folder = writable_folder(model_name)
    model = options.placed(load_model(model_name))
    task = options.task(data, folder, model.config, by_z=False)
    run(latent_stage(model, task, width, layers, dropout, options.seed), options, task)


@app.command()
@takes(ShapeFlags)
def diffae(data: Data, output: Folder, options: ShapeFlags, z_dim: Dimensions = 512) -> None:
    """Train a Diff-AE to compare with: E_phi and an eps_theta that takes z, both from scratch.

    Example: pdae train diffae photos/ -o runs/diffae --image-size 64
    """
    from ..training.diffae import diffae_stage, new_diffae

    if options.init_from is None:
        model = new_diffae(z_dim=z_dim, **options.network())
    else:
        model = load_model(options.init_from)
        if not model.takes_z or model.encoder is None:
            raise UsageError(f"{options.init_from} is no Diff-AE; leave --init-from out")
    task = options.task(data, output, options.placed(model).config)
    run(diffae_stage(model, task), options, task, options.network_of(model))


@app.command()
@takes(TrainFlags)
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
