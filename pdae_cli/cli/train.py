"""pdae train: one sub-command a stage; the same command resumes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .options import FITS, numbers, takes
from .output import Output
from .run.processes import device_of_share, launched

if TYPE_CHECKING:
    import torch

    from ..engine.config import ModelConfig
    from ..engine.model import Model
    from ..training.data import Pictures
    from ..training.loop import Stage, TrainOptions

PRECISIONS = {"float32": "no", "bfloat16": "bf16"}  # accelerate's names

app = typer.Typer(
    no_args_is_help=True,
    help="Train a model on your own pictures: dpm, then autoencoder, then latent.",
)

Data = Annotated[
    Path, typer.Argument(help="Folder, zip or tar shards of pictures: 'a/{00..99}.tar', s3://….")
]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Model folder; the same resumes.")]


@dataclass(frozen=True)
class TrainFlags:
    """Options of every stage."""

    labels: Annotated[
        Path | None, typer.Option(help="CSV of labels; its `split` column holds pictures out.")
    ] = None
    fit: Annotated[str, typer.Option(help="Pictures that aren't square: crop, pad, stretch.")] = (
        "crop"
    )
    images: Annotated[int, typer.Option(min=1, help="Pictures to see in all.")] = 4_000_000
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step, all processes.")] = 128
    accumulate: Annotated[int, typer.Option(min=1, help="Micro-batches a step.")] = 1
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 2e-4
    warmup: Annotated[int, typer.Option(min=0, help="Steps to reach it.")] = 500
    grad_clip: Annotated[float, typer.Option(help="Largest gradient norm.")] = 1.0
    ema_images: Annotated[
        int, typer.Option(min=1, help="Half-life of the weights' average, in pictures.")
    ] = 500_000
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 (autocast).")] = "float32"
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="The memory layout that GPUs like.")
    ] = False
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the step.")] = False
    checkpoint_activations: Annotated[
        bool,
        typer.Option(
            "--checkpoint-activations", help="Less memory, slower: compute again for gradients."
        ),
    ] = False
    flip: Annotated[bool, typer.Option(help="Mirror half of the pictures.")] = True
    seed: Annotated[
        int, typer.Option(help="Fixes order, timesteps, noise and initial weights.")
    ] = 0
    log_every: Annotated[int, typer.Option(min=1, help="Steps between log lines.")] = 50
    save_every: Annotated[
        int, typer.Option(min=1, help="Steps between checkpoints, each with a sample sheet.")
    ] = 2000
    weights_dtype: Annotated[str, typer.Option(help="Stored weights: float32 or float16.")] = (
        "float32"
    )
    licence: Annotated[
        str | None, typer.Option(help="Recorded in the model: the terms that its data set.")
    ] = None
    device: Annotated[
        str, typer.Option(envvar="PDAE_DEVICE", help="auto, or cpu to leave a GPU alone.")
    ] = "auto"
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Curves in OUTPUT/training/tensorboard as well.")
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what it needs: memory, FLOPs, disk, time."),
    ] = False
    json: Annotated[
        bool, typer.Option("--json", help="The log, or --dry-run's answer, as JSON lines.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but failures.")] = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown --precision {self.precision!r}; float32 or bfloat16")
        if self.fit not in FITS:
            raise UsageError(f"unknown --fit {self.fit!r}; known: {', '.join(FITS)}")
        if self.weights_dtype not in ("float32", "float16"):
            raise UsageError(f"unknown --weights-dtype {self.weights_dtype!r}; float32 or float16")
        if self.device not in ("auto", "cpu"):
            raise UsageError("train takes --device auto or cpu; choose GPUs by accelerate launch")

    def loop(self) -> TrainOptions:
        """The loop's own options."""
        from ..training.loop import TrainOptions

        names = {one.name for one in fields(TrainOptions)}
        values = {name: value for name, value in asdict(self).items() if name in names}
        return TrainOptions(**values | {"precision": PRECISIONS[self.precision]})

    def stored(self) -> torch.dtype:
        """How weights are written."""
        import torch

        return torch.float16 if self.weights_dtype == "float16" else torch.float32

    def placed(self, model: Model) -> Model:
        """The model on this process's device, with --licence recorded if it was given."""
        if self.licence is not None:
            model.config = replace(model.config, licence=self.licence)
        return model.to(self.place())

    def place(self) -> str:
        """This process's device: one of the machine's GPUs in turn, or the CPU."""
        import torch

        if not torch.accelerator.is_available():
            return "cpu"
        return device_of_share(self.device, launched()[0])

    def data(self, data: Path, config: ModelConfig) -> tuple[Pictures, Pictures]:
        """Training and validation pictures in the model's frame."""
        from ..training.data import find_labels, split
        from .data import open_data

        pictures = open_data(data, config.image_size, config.channels, self.fit, self.quiet)
        return split(pictures, find_labels(data, self.labels))


def run(stage: Stage, flags: TrainFlags, folder: Path) -> None:
    """Run the loop and show how it goes."""
    from ..training.estimate import estimate
    from ..training.loop import Run
    from ..training.tracking import tensorboard

    options = flags.loop()
    training = Run(stage, options, folder, cpu=flags.device == "cpu")
    first = training.accelerator.is_main_process
    out = Output(json=flags.json and first, quiet=flags.quiet or not first)
    if flags.dry_run:
        return show_needs(out, estimate(training, flags.stored()))
    parameters = sum(p.numel() for p in training.parameters.values())
    out.say(
        f"{stage.name}: {parameters / 1e6:.2f} M parameters on {training.accelerator.device}, "
        f"step {training.step} of {training.steps}, {len(stage.source)} pictures or codes; "
        f"log and samples in {training.folder}"
    )
    with ExitStack() as stack:
        bar = stack.enter_context(out.progress(stage.name, options.images))
        if curves := flags.tensorboard and first:
            track = stack.enter_context(
                tensorboard(training.folder / "tensorboard" / stage.name, training.step)
            )

        def report(record: dict[str, object]) -> None:
            note = " ".join(
                f"{key} {value:.4g}"
                for key, value in record.items()
                if key not in ("step", "images") and isinstance(value, float)
            )
            bar.advance_to(int(str(record["images"])), note)
            if out.json:
                out.result(record, "")
            elif not out.interactive:
                out.say(f"step {record['step']} images {record['images']} {note}")
            if curves:
                track(record)

        training.train(report)


def show_needs(out: Output, needs: dict[str, Any]) -> None:
    """A dry run's record, or lines for people."""
    if out.json:
        return out.result(needs, "")

    def size(name: str) -> str:
        return f"{needs[f'{name}_bytes'] / 2**20:,.1f} MiB"

    parts = ("weights", "gradients", "adam", "average", "activations")
    hours = needs["seconds_left"] / 3600
    lines = (
        f"{needs['stage']} on {needs['processes']} x {needs['device']}: "
        f"{needs['parameters']:,} parameters, {needs['trained_parameters']:,} of them trained",
        f"memory a process: {size('memory')} ({', '.join(f'{n} {size(n)}' for n in parts)})",
        f"arithmetic: {needs['flops_a_step'] / 1e9:,.1f} GFLOP a step",
        f"disk: {size('checkpoint')} a checkpoint, twice that while it is replaced; "
        f"{size('free')} free",
        f"time: {needs['seconds_a_step']:.3g} s a step, {hours:.3g} h for "
        f"{needs['steps_left']:,} steps, without metrics and sample sheets",
    )
    for line in lines:
        out.result({}, line)


@dataclass(frozen=True)
class ShapeFlags(TrainFlags):
    """What eps_theta is to be."""

    init_from: Annotated[str | None, typer.Option(help="Start from this model's weights.")] = None
    first_stage: Annotated[
        str | None,
        typer.Option(help="Diffuse this autoencoder's latents: diffusers' folder or Hub id."),
    ] = None
    image_size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 64
    channels: Annotated[int, typer.Option(help="3 for colour, 1 for gray.")] = 3
    patch: Annotated[int, typer.Option(help="Space-to-depth at the input: 1 (none) or 2.")] = 1
    base_channels: Annotated[int, typer.Option(help="Width of the first level.")] = 64
    multipliers: Annotated[str, typer.Option(help="Width of each level / base.")] = "1,2,3,4"
    blocks: Annotated[int, typer.Option(help="Residual blocks a level.")] = 2
    attention: Annotated[str, typer.Option(help="Attention at these map sizes.")] = "16,8"
    head_channels: Annotated[int, typer.Option(help="Channels an attention head.")] = 64
    dropout: Annotated[float, typer.Option(help="In every residual block.")] = 0.1
    betas: Annotated[str, typer.Option(help="Noise schedule: linear or cosine.")] = "linear"
    prediction: Annotated[
        str, typer.Option(help="What the network outputs: v, or eps as in DDPM.")
    ] = "v"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is not None and self.first_stage is not None:
            raise UsageError("--init-from goes on with a model's own latents; leave --first-stage")

    def network(self) -> dict[str, Any]:
        """Arguments of training.dpm.new_dpm."""
        from ..checkpoints import load_first_stage

        theirs = {one.name for one in fields(TrainFlags)} | {"init_from", "first_stage"}
        chosen = {name: value for name, value in asdict(self).items() if name not in theirs}
        lists = {name: tuple(numbers(chosen[name])) for name in ("multipliers", "attention")}
        if self.first_stage is not None:
            chosen["first_stage"] = load_first_stage(self.first_stage, Output().say)
        return chosen | lists | {"seed": self.seed}


@app.command()
@takes(ShapeFlags)
def dpm(
    data: Data,
    output: Folder,
    options: ShapeFlags,
) -> None:
    """Train eps_theta, a diffusion model of the pictures.

    Example: pdae train dpm photos/ -o runs/dpm --image-size 64
    """
    from ..training.dpm import dpm_stage, new_dpm

    if options.init_from is None:
        model = new_dpm(**options.network())
    else:
        model = load_model(options.init_from)
    options.placed(model)
    train, held_out = options.data(data, model.config)
    run(dpm_stage(model, train, held_out, output, options.stored()), options, output)


@app.command()
@takes(TrainFlags)
def autoencoder(
    data: Data,
    output: Folder,
    options: TrainFlags,
    dpm: Annotated[
        str | None,
        typer.Option(help="The pre-trained model: name, folder, Hub id, or what convert reads."),
    ] = None,
    init_from: Annotated[
        str | None, typer.Option(help="Go on with all parts of this model instead of --dpm.")
    ] = None,
    z_dim: Annotated[int, typer.Option(min=1, help="Dimensions of z.")] = 512,
    condition: Annotated[
        str | None,
        typer.Option(help="Columns of the labels, a,b,…: G_psi takes those, and no encoder is."),
    ] = None,
) -> None:
    """Train the encoder E_phi and the gradient estimator G_psi against a frozen eps_theta.

    Example: pdae train autoencoder photos/ --dpm runs/dpm -o runs/model
    """
    from ..checkpoints import load_dpm
    from ..training.autoencoder import autoencoder_stage, with_autoencoder

    if (dpm is None) == (init_from is None):
        raise UsageError("give either --dpm, to train new parts, or --init-from, to go on with old")
    if condition is not None:
        from .train_conditional import run_conditional

        return run_conditional(data, output, options, dpm, init_from, z_dim, condition)
    if dpm is not None:
        model = with_autoencoder(load_dpm(dpm, Output().say), z_dim, options.seed)
    else:
        model = load_model(str(init_from))
        if model.gradient_estimator is None or model.encoder_network is None:
            raise UsageError(f"{init_from} has no encoder and gradient estimator; use --dpm")
    options.placed(model)
    train, held_out = options.data(data, model.config)
    run(autoencoder_stage(model, train, held_out, output, options.stored()), options, output)


def load_model(name: str) -> Model:
    """A model on the CPU, where training takes over."""
    from ..checkpoints import load

    return load(name, device="cpu")


@app.command()
@takes(TrainFlags)
def latent(
    data: Data,
    model_name: Annotated[
        str, typer.Option("--model", "-m", help="The model that gets a latent DPM.")
    ],
    options: TrainFlags,
    width: Annotated[int, typer.Option(min=1, help="Of the hidden layers.")] = 512,
    layers: Annotated[int, typer.Option(min=2, help="Of the MLP.")] = 10,
    dropout: Annotated[float, typer.Option(help="In every layer.")] = 0.0,
) -> None:
    """Train the latent DPM, which `pdae sample` draws z from.

    Example: pdae train latent photos/ --model runs/model
    """
    from ..checkpoints import load, writable_folder
    from ..training.latent import latent_stage

    folder = writable_folder(model_name)
    model = load(model_name, options.place())
    train, held_out = options.data(data, model.config)
    stage = latent_stage(
        model, train, held_out, folder, width, layers, dropout, options.seed, options.stored()
    )
    run(stage, options, folder)
