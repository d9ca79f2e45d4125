"""Options as small dataclasses, one a subject: a command composes those that it reads.

What is rarely wanted is hidden from --help and told by `pdae help COMMAND --all`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from ..errors import UsageError
from .complete import models
from .output import Output
from .run.destination import writable
from .run.inputs import Item, check_names, paths_named
from .run.launch import device_of, forget_leftovers, join, launched
from .run.recipes import recordable

if TYPE_CHECKING:
    from ..checkpoints import PretrainedModel
    from ..diffusion.trajectory import Sampling

DEFAULT_MODEL = "faces64"
SOLVING, PICTURES, FILES, MODEL = "Solving", "Pictures", "Files and runs", "Model"
PANELS = (None, SOLVING, PICTURES, FILES, MODEL)  # of --help, in this order

NAMED = "files, folders, or - for standard input."
Inputs = Annotated[list[str] | None, typer.Argument(help=f"Pictures or codes: {NAMED}")]
PictureInputs = Annotated[list[str] | None, typer.Argument(help=f"Pictures: {NAMED}")]
OutputPath = Annotated[
    str | None,
    typer.Option(
        "--output", "-o",
        help="File, folder, or - for standard output; default: -, or at a terminal a file here."),
]  # fmt: skip
Format = Annotated[
    Literal["png", "jpg", "jpeg", "webp", "gif"],
    typer.Option(
        case_sensitive=False, rich_help_panel=FILES, help="Of pictures where -o has no suffix."
    ),
]
RandomNoise = Annotated[bool, typer.Option("--random-noise", help="Fresh x_T from --seed.")]


def option(
    default: Any, panel: str | None, help: str, *names: str, rare: bool = False, **more: Any
) -> Any:
    """One field that is an option, in a panel of --help; a `rare` one is hidden."""
    one = typer.Option(*names, rich_help_panel=panel, help=help, hidden=rare, **more)
    return field(default=default, metadata={"option": one})


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The fields' types with their options. Reading them takes milliseconds, and many commands
    share them."""
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        if one.metadata:
            hints[one.name] = Annotated[hints[one.name], one.metadata["option"]]
    return hints


def takes(
    kind: type, without: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a dataclass, `without` some, as options, handed over as
    `options`; its field `given` gets every parameter of the command by name."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints, keyword = _hints(kind), inspect.Parameter.KEYWORD_ONLY
        parameters = inspect.signature(function, eval_str=True).parameters
        own = [one.replace(kind=keyword) for name, one in parameters.items() if name != "options"]
        shared = [
            inspect.Parameter(
                one.name,
                keyword,
                default=inspect.Parameter.empty if one.default is MISSING else one.default,
                annotation=hints[one.name],
            )
            for one in fields(kind)
            if one.name not in ("given", *without)
        ]
        panels = {one.name: one.annotation.__metadata__[0].rich_help_panel for one in shared}
        shared.sort(key=lambda one: (*PANELS, panels[one.name]).index(panels[one.name]))

        def command(*args: Any, **values: Any) -> None:
            named = {one.name: values.pop(one.name) for one in shared}
            check_names(given := named | values)
            if "given" in hints:
                named["given"] = given
            function(*args, options=kind(**named), **values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        all_ = [one.replace(annotation=paths_named(one.annotation)) for one in [*own, *shared]]
        command.__signature__ = inspect.Signature(all_)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in all_}
        return command

    return decorate


@dataclass(frozen=True)
class SaidOptions:
    """How a command says its results."""

    json: bool = option(False, FILES, "A JSON line for each result.", "--json")
    quiet: bool = option(False, FILES, "Say nothing but failures.", "--quiet", "-q")
    given: dict[str, Any] = field(default_factory=dict)  # every parameter of the command, by name

    @property
    def out(self) -> Output:
        """Where they are said."""
        return Output(self.json, self.quiet)


@dataclass(frozen=True)
class ModelOptions(SaidOptions):
    """Which model, and where it computes."""

    model: str = option(
        DEFAULT_MODEL, MODEL, "Bundled name, folder, or Hub id, with @revision behind.",
        "--model", "-m", envvar="PDAE_MODEL", autocompletion=models,
    )  # fmt: skip
    device: str = option("auto", MODEL, "auto, cpu, cuda, cuda:1, mps …", envvar="PDAE_DEVICE")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", MODEL, "Of the networks.")
    batch_size: int = option(32, MODEL, "Pictures computed at once.", min=1)
    compile: bool = option(
        False, MODEL, "torch.compile: a minute's wait, pays for thousands.", "--compile", rare=True
    )

    def load(self, device: str | None = None) -> PretrainedModel:
        """Load the model onto its device, or onto this one."""
        from ..checkpoints import load

        forget_leftovers()
        say = self.out.say
        model = load(self.model, device or self.device, self.dtype, say, self.compile)
        model.batch_size, model.notify = self.batch_size, say
        return model


@dataclass(frozen=True)
class SeedOptions:
    seed: int = option(0, MODEL, "Of all random numbers.", callback=recordable)


@dataclass(frozen=True)
class SolvingOptions:
    """How trajectories are solved; what isn't given is taken from the codes, or the default."""

    preset: Literal["default", "fast", "exact", "archival"] | None = option(
        None, SOLVING, "fast; exact, archival: all pixels back."
    )
    inference_steps: int | None = option(None, SOLVING, "Solver steps, each way.", min=1, max=1000)
    solver: Literal["dpmpp", "ddim", "leapfrog", "ddpm", "sde", "pc"] | None = option(
        None, SOLVING, "Of the ODE; or by chance: ddpm, sde, pc."
    )
    guidance: float | None = option(None, SOLVING, "Strength of G_psi.")
    spacing: Literal["asinh5", "asinh", "logsnr", "quadratic", "uniform"] | None = option(
        None, SOLVING, "Of timesteps.", rare=True
    )
    guide_from: int | None = option(None, SOLVING, "Guide at timesteps t <= this.", rare=True)
    guide_until: int | None = option(None, SOLVING, "Guide at timesteps t >= this.", rare=True)
    parity: Literal["pdae", "diffae", "diffusers"] | None = option(
        None, SOLVING, "Sample as another program does.", rare=True
    )

    def changes(self) -> dict[str, Any]:
        """The settings of Sampling that were given, by a preset or one by one."""
        from ..diffusion.trajectory import PRESETS

        named = {
            "inference_steps": self.inference_steps, "solver": self.solver,
            "spacing": self.spacing, "guidance": self.guidance, "guide_from": self.guide_from,
            "guide_until": self.guide_until, "parity": self.parity,
        }  # fmt: skip
        given = {name: value for name, value in named.items() if value is not None}
        return (PRESETS[self.preset] if self.preset else {}) | given

    def sampling(self) -> Sampling:
        """The default with what was given."""
        from ..diffusion.trajectory import Sampling

        return Sampling().changed(self.changes())


@dataclass(frozen=True)
class EncodingOptions(SolvingOptions):
    """For commands that encode pictures, too."""

    corrections: int | None = option(
        None, SOLVING, "Of encoding, until decoding gives it back.", rare=True, min=0, max=20
    )

    def changes(self) -> dict[str, Any]:
        given = {} if self.corrections is None else {"corrections": self.corrections}
        return super().changes() | given


@dataclass(frozen=True)
class SharedOptions(ModelOptions):
    """Whose of the inputs are this process's."""

    share: str | None = option(
        None, FILES, "One share of the inputs, 2/8, for job arrays; 0/8 is the same as 8/8.",
        rare=True,
    )  # fmt: skip

    def load(self, device: str | None = None) -> PretrainedModel:
        """Load the model onto this process's device."""
        join(self.share, self.dtype, self.out.say)
        number = self.shares()[0] if self.share else None
        return super().load(device if number is None else device_of(self.device, number))

    def __post_init__(self) -> None:
        self.shares()

    def shares(self) -> tuple[int, int]:
        """Return this process's share of the inputs, from 0, and how many there are: by --share, or
        by the launcher that started this process with others. Raises UsageError."""
        if self.share is None:
            return launched()
        number, slash, count = self.share.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and int(count) >= 1):
            raise UsageError(f"--share {self.share!r} isn't like 2/8, the second of eight shares")
        if int(number) > int(count):
            raise UsageError(f"--share {self.share}: of {count} it is 1 … {count}")
        if launched()[1] > 1:
            raise UsageError("--share and a launcher exclude each other")
        return (int(number) - 1) % int(count), int(count)


@dataclass(frozen=True)
class RunOptions(SharedOptions):
    """What becomes of outputs that exist."""

    overwrite: bool = option(False, FILES, "Replace files of others, too.", "--overwrite")
    skip_existing: bool = option(False, FILES, "Leave out what exists already.", "--skip-existing")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overwrite and self.skip_existing:
            raise UsageError("--overwrite and --skip-existing exclude each other")


@dataclass(frozen=True)
class ReadOptions:
    """How pictures are read."""

    fit: Literal["crop", "pad", "stretch"] = option(
        "crop", PICTURES, "Pictures that aren't square."
    )
    frames: Literal["first", "all"] = option("first", PICTURES, "Of animated pictures.")


@dataclass(frozen=True)
class WriteOptions:
    """What written pictures carry."""

    keep_alpha: bool = option(
        False, PICTURES, "Keep the input's transparency.", "--keep-alpha", rare=True
    )
    keep_exif: bool = option(
        False, PICTURES, "Copy the input's EXIF: camera, place, time.", "--keep-exif", rare=True
    )
    no_metadata: bool = option(
        False, PICTURES, "Don't write how they were made.", "--no-metadata", rare=True
    )


@dataclass(frozen=True)
class ViewOptions:
    """How results are shown to people, beside what is written."""

    show: bool = option(False, PICTURES, "Show pictures in the terminal.", "--show")
    sheet: str | None = option(None, PICTURES, "Lay pictures out in this file.", callback=writable)
    report: str | None = option(None, PICTURES, "Tell all in this page, .html.", callback=writable)


@dataclass(frozen=True)
class NamesOptions(SaidOptions):
    """Where inputs are named."""

    recursive: bool = option(
        False, FILES, "Go into folders; outputs mirror the tree.", "--recursive", "-r"
    )
    files_from: str | None = option(
        None, FILES, "Read more inputs from this file, a line each; - for stdin."
    )
    null: bool = option(
        False, FILES, "Names in --files-from end with NUL, as of find -print0.", "--null", "-0",
        rare=True,
    )  # fmt: skip

    def named(self, command: str, inputs: list[str] | None, **how: Any) -> Iterable[Item]:
        """The inputs, without what the command wrote itself; `how` as of `collect`."""
        from .run.inputs import collect
        from .run.manifest import own_outputs

        how |= {"null": self.null, "say": self.out.say}
        own = own_outputs(command, self.given)
        return collect(inputs, self.files_from, self.recursive, without=own, **how)


@dataclass(frozen=True)
class StreamOptions(SaidOptions):
    stream: Literal["png"] | None = option(
        None, FILES, "Concatenated PNGs on stdin, and with -o - on stdout.", rare=True
    )


@dataclass(frozen=True)
class FileOptions(NamesOptions, StreamOptions):
    """Inputs that are each wanted once, also as a stream."""

    def items(
        self, command: str, inputs: list[str] | None, streamed: bool = True
    ) -> Iterable[Item]:
        """The inputs; --stream is of them if `streamed`."""
        stream = self.stream if streamed else None
        return self.named(command, inputs, stream=stream, once=True)


@dataclass(frozen=True)
class FaceOptions(ReadOptions):
    """Which square of a photo the model sees."""

    align: bool = option(False, PICTURES, "Bring the face into the model's frame first.", "--align")
    landmarks: str | None = option(
        None, PICTURES, "Align by this JSON file of eyes and mouths, if it knows.", rare=True
    )
    face: str = option(
        "largest", PICTURES, "Of several: largest, all, or the N-th from the left.", rare=True
    )


@dataclass(frozen=True)
class PhotoOptions(FaceOptions):
    """For edits, which also go into full-size photos."""

    paste_back: bool = option(
        False, PICTURES, "Put the edited square back into the photo.", "--paste-back"
    )


@dataclass(frozen=True)
class LikelihoodOptions(
    FileOptions, ReadOptions, ViewOptions, SeedOptions, SolvingOptions, SharedOptions
):
    """Pictures to bits per dimension, by a solver of its own."""

    inference_steps: int = option(100, SOLVING, "Steps of the ODE.", min=1, max=1000)
    guidance: float | None = option(None, SOLVING, "Strength of G_psi, with --conditional.")


@dataclass(frozen=True)
class EncodeOptions(FaceOptions, FileOptions, ViewOptions, EncodingOptions, RunOptions):
    """Pictures to codes."""


@dataclass(frozen=True)
class DecodeOptions(
    FileOptions, WriteOptions, ViewOptions, SeedOptions, SolvingOptions, RunOptions
):
    """Codes to pictures."""


@dataclass(frozen=True)
class PictureOptions(EncodeOptions, WriteOptions, SeedOptions):
    """Pictures to pictures."""


@dataclass(frozen=True)
class EditOptions(PhotoOptions, PictureOptions):
    """Pictures, or faces in photos, to edited ones."""


def numbers(text: str) -> list[int]:
    """ "1,2,3" → [1, 2, 3]; an empty text is an empty list."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"{text!r} isn't a list of whole numbers like 1,2,3") from error


def split_names(text: str) -> list[str]:
    """ "a, b, a" → ["a", "b"]."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
