"""Options of pdae train: of every stage, and of eps_theta's shape."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UsageError
from .data import compare_split, labels_of, named, open_data
from .options import numbers, option, split_names
from .output import Output
from .run.launch import asked, check_training, device_of, launched, on_its_machine

if TYPE_CHECKING:
    from ..engine.config import ModelConfig
    from ..engine.model import Model
    from ..training.conditional import Condition
    from ..training.data import Task

AUTOCAST = {"float32": "no", "bfloat16": "bf16"}  # accelerate's names
NETWORK, LEARNING, COMPUTING = "Network", "Learning", "Computing"  # panels of --help
TELLING = "Output and log"
USUAL = "default: as suits device and size"
LEAST = 1e-12  # of what must be above 0: an end of Typer's ranges belongs to them
MOST = 10**12  # of what is counted: nobody trains as long, and files have whole numbers to 2^63
MOST_ROWS = 1 << 20  # of a step: more have no room anywhere, but would be listed
SEEDS = 2**63  # seeds have 63 bits and a sign, as whole numbers in a model's files
NEW = {"image_size": 64, "channels": 3, "betas": "linear", "prediction": "v"}  # eps_theta's

common = typer.Option


@dataclass(frozen=True)
class TrainFlags:
    """Options of every stage."""

    images: int = option(4_000_000, None, "Pictures to see in all.", min=1, max=MOST)
    batch_size: int | None = option(
        None, None, f"Pictures a step, all processes; {USUAL}.", min=1, max=MOST_ROWS
    )
    lr: float = option(2e-4, None, "Learning rate.", min=LEAST, max=1e3)
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
    warmup: int = option(500, LEARNING, "Steps to reach the learning rate.", min=0, max=MOST)
    cooldown: float = option(0.0, LEARNING, "Share of the run to end it in.", min=0, max=1)
    grad_clip: float = option(
        1.0, LEARNING, "Largest gradient norm.", rare=True, min=LEAST, max=1e12
    )
    ema_images: int = option(500_000, LEARNING, "Half-life of the average.", min=1, max=MOST)
    seed: int = option(
        0, LEARNING, "Fixes order, timesteps, noise and initial weights.", min=-SEEDS, max=SEEDS - 1
    )
    accumulate: int = option(1, COMPUTING, "Micro-batches a step.", min=1, max=MOST_ROWS)
    channels_last: bool = option(False, COMPUTING, "GPUs like it.", "--channels-last", rare=True)
    compile: bool = option(False, COMPUTING, "torch.compile the step.", "--compile")
    checkpoint_activations: bool = option(
        False, COMPUTING, "Compute them twice: less memory, slower.", "--checkpoint-activations"
    )
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = option(
        "auto", COMPUTING, "Kind; the launcher says which.", envvar="PDAE_DEVICE"
    )
    log_every: int = option(50, TELLING, "Steps between log lines.", min=1, max=MOST)
    save_every: int = option(2000, TELLING, "Steps between checkpoints.", min=1, max=MOST)
    weights_dtype: Literal["float32", "float16"] = option("float32", TELLING, "Of stored weights.")
    licence: str | None = option(None, TELLING, "The data's terms, for the model's.")
    tracker: str = option("", TELLING, "Log there too: tensorboard,wandb,mlflow,….")
    json: bool = option(False, TELLING, "JSON lines, of the log or --dry-run.", "--json")
    quiet: bool = option(False, TELLING, "Say nothing but failures.", "--quiet", "-q")

    def __post_init__(self) -> None:
        check_training()
        self.autocast()
        if self.tracker:
            self.trackers()

    def autocast(self) -> str:
        """Name the precision as accelerate does: --precision, else the launcher's."""
        theirs = asked("MIXED_PRECISION")
        if self.precision is None and theirs not in AUTOCAST.values():
            raise UsageError(f"the launcher asks for {theirs}; bf16 it can be, or give --precision")
        return theirs if self.precision is None else AUTOCAST[self.precision]

    def placed(self, model: Model) -> Model:
        """Put the model where accelerate will train it, on this process's GPU or the CPU, and
        --licence into it if that was given."""
        from ..checkpoints.find import going_on

        model.config = going_on(model, self.licence)
        if not self.accelerated:
            return model.to("cpu")
        kind = "auto" if self.device == "cuda" else self.device  # which one: by its number
        return model.to(device_of(kind, on_its_machine()))

    @property
    def accelerated(self) -> bool:
        """Whether it trains on a GPU. Raises UsageError where there is none of a kind that was
        asked for."""
        import torch

        found = torch.accelerator.current_accelerator(check_available=True)
        if self.device not in ("auto", "cpu") and (found is None or found.type != self.device):
            raise UsageError(f"there is no {self.device} here; --device auto takes what there is")
        return self.device != "cpu" and found is not None

    def task(self, data: Path, folder: Path, config: ModelConfig, by_z: bool = True) -> Task:
        """Open the pictures in the model's frame; hold some out, to be measured `by_z` or not."""
        import torch

        from ..training.data import Task, names_sha, split

        out = Output(self.json, self.quiet or launched()[0] > 0)
        pictures = open_data(data, config.image_size, config.channels, out, self.fit, folder)
        dtype = torch.float16 if self.weights_dtype == "float16" else torch.float32
        train, held_out = split(pictures, labels_of(pictures, self.labels, self.quiet))
        compare_split(config, held_out, out)
        sha = names_sha(held_out)
        with out.progress("read", len(pictures)) as bar:
            train, held_out = train.checked(bar.advance), held_out.checked(bar.advance)
        if by_z and len(held_out) == 1:
            out.say(
                "one picture is held out, so nothing is measured with another picture's z; more "
                "pictures, or a `split` column in the labels, hold out more"
            )
        return Task(train, held_out, folder, dtype, named(data), sha)

    def condition(self, data: Path, columns: str) -> Condition:
        """Read the labels of these columns."""
        from ..training.conditional import condition
        from ..training.data import picture_source
        from ..training.labels import find_labels

        names = picture_source(data).names
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


def check_own(name: str, said: object, own: object) -> None:
    """Raise UsageError where an option of the network was given and isn't the model's own."""
    if said is not None and said != own:
        option = f"--{name.replace('_', '-')}"
        told = ",".join(f"{one:g}" for one in own) if isinstance(own, tuple) else own
        raise UsageError(f"{option} of the model of --init-from is {told}; leave {option} out")


@dataclass(frozen=True)
class ShapeFlags(TrainFlags):
    """What eps_theta is to be."""

    init_from: str | None = option(None, None, "Start from this model's weights.")
    image_size: int | None = option(None, None, "Height and width in pixels; default: 64.")
    channels: int | None = option(None, NETWORK, "3 for colour, the default, 1 for gray.")
    first_stage: str | None = option(None, NETWORK, "Diffuse the latents of diffusers' model.")
    patch: int | None = option(None, NETWORK, "Space-to-depth at the input, 1 is none.", rare=True)
    base_channels: int | None = option(None, NETWORK, f"Width of the first level; {USUAL}.")
    multipliers: str | None = option(None, NETWORK, "Width of each level / base; likewise.")
    blocks: int | None = option(None, NETWORK, "Residual blocks a level; likewise.")
    attention: str | None = option(None, NETWORK, "Attention at these map sizes; likewise.")
    head_channels: int | None = option(None, NETWORK, "Channels an attention head.", rare=True)
    dropout: float | None = option(None, NETWORK, "In every residual block; likewise.")
    betas: Literal["linear", "scaled_linear", "cosine", "constant"] | None = option(
        None, NETWORK, "Noise schedule; default: linear."
    )
    prediction: Literal["v", "eps"] | None = option(
        None, NETWORK, "What the network outputs; default: v."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is not None and self.first_stage is not None:
            raise UsageError("--init-from goes on with a model's own latents; leave --first-stage")
        if self.channels not in (None, 1, 3):
            raise UsageError(f"--channels is 3 for colour or 1 for gray, not {self.channels}")

    def said(self) -> dict[str, Any]:
        """Tell what was said of the network."""
        theirs = {one.name for one in fields(TrainFlags)} | {"init_from", "first_stage"}
        given = asdict(self).items()
        chosen = {name: one for name, one in given if one is not None and name not in theirs}
        for name in chosen.keys() & {"multipliers", "attention"}:
            chosen[name] = tuple(numbers(chosen[name]))
        return chosen

    def going_on(self, model: Model) -> Model:
        """Return the model of --init-from. Raises UsageError where its network isn't as said."""
        config = model.config
        own = asdict(config.unet) | {"image_size": config.image_size, "channels": config.channels}
        own |= {"betas": config.schedule.betas, "prediction": config.prediction}
        for name, value in self.said().items():
            check_own(name, value, own[name])
        return model

    def network(self) -> dict[str, Any]:
        """Choose the arguments of training.dpm.new_dpm."""
        from ..checkpoints import load_first_stage

        chosen = NEW | self.said()
        if self.first_stage is not None:
            chosen["first_stage"], whose = load_first_stage(self.first_stage, Output().say)
            chosen |= whose
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
