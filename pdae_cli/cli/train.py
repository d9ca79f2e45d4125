"""pdae train: one sub-command a stage; the same command resumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .options import Device, Quiet, numbers
from .output import Output

if TYPE_CHECKING:
    from ..engine import Model
    from ..training.data import Labels, Pictures
    from ..training.loop import Stage, TrainOptions

app = typer.Typer(
    no_args_is_help=True,
    help="Train a model on your own pictures: dpm, then autoencoder, then latent.",
)

Data = Annotated[Path, typer.Argument(help="Folder tree or zip of pictures.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Model folder; the same resumes.")]
Csv = Annotated[Path | None, typer.Option(help="Labels; default: labels.csv inside DATA.")]
Fit = Annotated[str, typer.Option(help="crop, pad or stretch pictures that aren't square.")]
Images = Annotated[int, typer.Option(help="Pictures to see in all.")]
BatchSize = Annotated[int, typer.Option(help="Pictures a step, over all processes.")]
Accumulate = Annotated[int, typer.Option(help="Micro-batches that a step is split into.")]
Rate = Annotated[float, typer.Option("--lr", help="Adam's learning rate.")]
Warmup = Annotated[int, typer.Option(help="Steps to reach it.")]
Clip = Annotated[float, typer.Option(help="Largest gradient norm.")]
EmaImages = Annotated[int, typer.Option(help="Half-life of the weights' average, in pictures.")]
Precision = Annotated[str, typer.Option(help="float32, or bfloat16 (autocast).")]
ChannelsLast = Annotated[bool, typer.Option(help="Memory layout that GPUs like.")]
Compile = Annotated[bool, typer.Option(help="torch.compile the step.")]
Flip = Annotated[bool, typer.Option(help="Mirror half of the pictures.")]
Seed = Annotated[int, typer.Option(help="Fixes order, timesteps, noise and initial weights.")]
LogEvery = Annotated[int, typer.Option(help="Steps between log lines.")]
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints and sample sheets.")]
WeightsDtype = Annotated[str, typer.Option(help="float32 or float16: how weights are stored.")]


def train_options(**values: Any) -> TrainOptions:
    """The loop's options from a command's parameters."""
    from ..training.loop import TrainOptions

    precisions = {"float32": "no", "bfloat16": "bf16"}
    if values["precision"] not in precisions:
        raise UsageError(f"unknown --precision {values['precision']!r}; float32 or bfloat16")
    for name in ("images", "batch_size", "accumulate", "log_every", "save_every"):
        if values[name] < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    return TrainOptions(**values | {"precision": precisions[values["precision"]]})


def stored_dtype(name: str) -> Any:
    import torch

    dtypes = {"float32": torch.float32, "float16": torch.float16}
    if name not in dtypes:
        raise UsageError(f"unknown --weights-dtype {name!r}; float32 or float16")
    return dtypes[name]


def training_data(
    data: Path, labels: Path | None, size: int, channels: int, fit: str
) -> tuple[Pictures, Pictures, Labels | None]:
    """Training and validation pictures, and the labels if there are any."""
    from ..training.data import find_labels, open_pictures, split

    found = find_labels(data, labels)
    return *split(open_pictures(data, size, channels, fit), found), found


def run(stage: Stage, options: TrainOptions, folder: Path, out: Output) -> None:
    """Run the loop and show how it goes."""
    from ..training.loop import Run

    training = Run(stage, options, folder)
    parameters = sum(p.numel() for p in training.parameters.values())
    out.say(
        f"{stage.name}: {parameters / 1e6:.2f} M parameters to train on {training.accelerator.device}, "
        f"step {training.step} of {training.steps}, {len(stage.source)} pictures or codes; "
        f"log and samples in {training.folder}"
    )
    with out.progress(stage.name, options.images) as bar:

        def report(record: dict[str, object]) -> None:
            note = " ".join(
                f"{key} {value:.4g}"
                for key, value in record.items()
                if key not in ("step", "images") and isinstance(value, float)
            )
            bar.advance_to(int(str(record["images"])), note)
            if not out.interactive:
                out.say(f"step {record['step']} images {record['images']} {note}")

        training.train(report)


@app.command()
def dpm(
    data: Data,
    output: Folder,
    init_from: Annotated[str | None, typer.Option(help="Start from this model's weights.")] = None,
    image_size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 64,
    channels: Annotated[int, typer.Option(help="3 for colour, 1 for gray.")] = 3,
    patch: Annotated[int, typer.Option(help="Space-to-depth at the input: 1 (none) or 2.")] = 1,
    base_channels: Annotated[int, typer.Option(help="Width of the first level.")] = 64,
    multipliers: Annotated[str, typer.Option(help="Width of each level / base.")] = "1,2,3,4",
    blocks: Annotated[int, typer.Option(help="Residual blocks a level.")] = 2,
    attention: Annotated[str, typer.Option(help="Attention at these map sizes.")] = "16,8",
    head_channels: Annotated[int, typer.Option(help="Channels an attention head.")] = 64,
    dropout: Annotated[float, typer.Option(help="In every residual block.")] = 0.1,
    betas: Annotated[str, typer.Option(help="Noise schedule: linear or cosine.")] = "linear",
    fit: Fit = "crop",
    labels: Csv = None,
    images: Images = 8_000_000,
    batch_size: BatchSize = 128,
    accumulate: Accumulate = 1,
    lr: Rate = 2e-4,
    warmup: Warmup = 500,
    grad_clip: Clip = 1.0,
    ema_images: EmaImages = 500_000,
    precision: Precision = "float32",
    channels_last: ChannelsLast = False,
    compile: Compile = False,
    flip: Flip = True,
    seed: Seed = 0,
    log_every: LogEvery = 50,
    save_every: SaveEvery = 2000,
    weights_dtype: WeightsDtype = "float32",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train eps_theta, a diffusion model of the pictures.

    Example: pdae train dpm photos/ -o runs/dpm --image-size 64
    """
    from ..training.dpm import dpm_stage, new_dpm

    options = train_options(
        images=images, batch_size=batch_size, accumulate=accumulate, lr=lr, warmup=warmup,
        grad_clip=grad_clip, ema_images=ema_images, precision=precision, channels_last=channels_last,
        compile=compile, flip=flip, seed=seed, log_every=log_every, save_every=save_every,
    )  # fmt: skip
    if init_from is None:
        model = new_dpm(
            seed, betas,
            image_size=image_size, channels=channels, patch=patch, base_channels=base_channels,
            multipliers=tuple(numbers(multipliers)), blocks=blocks,
            attention=tuple(numbers(attention)), head_channels=head_channels, dropout=dropout,
        )  # fmt: skip
    else:
        model = load_model(init_from)
    model.to(device)
    unet = model.config.unet
    train, held_out, _ = training_data(data, labels, unet.image_size, unet.channels, fit)
    stage = dpm_stage(model, train, held_out, output, stored_dtype(weights_dtype))
    run(stage, options, output, Output(quiet=quiet))


def load_model(name: str) -> Model:
    from ..checkpoints import load

    return load(name, device="cpu")


@app.command()
def autoencoder(
    data: Data,
    output: Folder,
    dpm: Annotated[str, typer.Option(help="The pre-trained diffusion model: name or folder.")],
    z_dim: Annotated[int, typer.Option(help="Dimensions of z.")] = 512,
    fit: Fit = "crop",
    labels: Csv = None,
    images: Images = 4_000_000,
    batch_size: BatchSize = 128,
    accumulate: Accumulate = 1,
    lr: Rate = 2e-4,
    warmup: Warmup = 500,
    grad_clip: Clip = 1.0,
    ema_images: EmaImages = 500_000,
    precision: Precision = "float32",
    channels_last: ChannelsLast = False,
    compile: Compile = False,
    flip: Flip = True,
    seed: Seed = 0,
    log_every: LogEvery = 50,
    save_every: SaveEvery = 2000,
    weights_dtype: WeightsDtype = "float32",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train the encoder E_phi and the gradient estimator G_psi against a frozen eps_theta.

    Example: pdae train autoencoder photos/ --dpm runs/dpm -o runs/model
    """
    from ..training.autoencoder import autoencoder_stage, with_autoencoder

    options = train_options(
        images=images, batch_size=batch_size, accumulate=accumulate, lr=lr, warmup=warmup,
        grad_clip=grad_clip, ema_images=ema_images, precision=precision, channels_last=channels_last,
        compile=compile, flip=flip, seed=seed, log_every=log_every, save_every=save_every,
    )  # fmt: skip
    model = with_autoencoder(load_model(dpm), z_dim, seed).to(device)
    unet = model.config.unet
    train, held_out, _ = training_data(data, labels, unet.image_size, unet.channels, fit)
    stage = autoencoder_stage(model, train, held_out, output, stored_dtype(weights_dtype))
    run(stage, options, output, Output(quiet=quiet))
