"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from ..diffusion.sampling import Sampling
    from ..engine.model import Model
    from .run.inputs import Item

DEFAULT_MODEL = "faces64"
FITS = ("crop", "pad", "stretch")
FRAMES = ("first", "all")

Inputs = Annotated[
    list[str] | None,
    typer.Argument(help="Pictures or codes: files, folders, or - for standard input."),
]
OutputPath = Annotated[
    str, typer.Option("--output", "-o", help="File, folder, or - for standard output.")
]
FilesFrom = Annotated[
    str | None, typer.Option(help="Read more inputs from this file, a line each; - for stdin.")
]
Null = Annotated[
    bool,
    typer.Option("--null", "-0", help="Names in --files-from end with NUL, as of find -print0."),
]
Stream = Annotated[
    str | None, typer.Option(help="png: concatenated PNGs on stdin, and with -o - on stdout.")
]
Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="Go into folders; outputs mirror the tree.")
]
Format = Annotated[str, typer.Option(help="Of pictures where -o has no suffix: png, jpg, webp.")]
LandmarksFile = Annotated[
    str | None, typer.Option("--landmarks", help="Align by this JSON file of eyes and mouths.")
]


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Reading them takes milliseconds, and many commands share them."""
    return get_type_hints(kind, include_extras=True)


def takes(
    kind: type, without: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a dataclass, `without` some, as options, handed over as
    `options`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = _hints(kind)
        own = [
            parameter
            for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
            if name != "options"
        ]
        shared = [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if one.default is MISSING else one.default,
                annotation=hints[one.name],
            )
            for one in fields(kind)
            if one.name not in ("given", *without)
        ]

        def command(*args: Any, **values: Any) -> None:
            named = {one.name: values.pop(one.name) for one in shared}
            if "given" in hints:
                named["given"] = named | values
            options = kind(**named)
            function(*args, options=options, **values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + shared
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


@dataclass(frozen=True)
class ModelOptions:
    """Which model, where it computes, and what is said about it."""

    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", envvar="PDAE_MODEL", help="Bundled name, folder, or Hub id[@revision]."
        ),
    ] = DEFAULT_MODEL
    device: Annotated[
        str, typer.Option(envvar="PDAE_DEVICE", help="auto, cpu, cuda, cuda:1, mps …")
    ] = "auto"
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16 networks.")] = "float32"
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures computed at once.")] = 32
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile the networks: for many pictures.")
    ] = False
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0
    json: Annotated[bool, typer.Option("--json", help="A JSON line for each result.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but failures.")] = False
    given: dict[str, Any] = field(default_factory=dict)  # every parameter of the command, by name

    def load(self, device: str | None = None) -> Model:
        """The model, placed on its device, or on this one."""
        from ..checkpoints import load
        from .output import Output

        announce = Output(quiet=self.quiet).say
        model = load(self.model, device or self.device, self.dtype, announce, self.compile)
        model.batch_size, model.notify = self.batch_size, announce
        return model


@dataclass(frozen=True)
class SamplingOptions(ModelOptions):
    """How trajectories are solved; what isn't given is taken from the codes, or the default."""

    preset: Annotated[
        str | None, typer.Option(help="default; exact: nearly all pixels back; archival: all.")
    ] = None
    inference_steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Solver steps, each way.")
    ] = None
    solver: Annotated[
        str | None, typer.Option(help="dpmpp, ddim, leapfrog; or by chance: ddpm, sde, pc.")
    ] = None
    spacing: Annotated[
        str | None, typer.Option(help="Of timesteps: asinh, logsnr, quadratic, uniform.")
    ] = None
    corrections: Annotated[
        int | None, typer.Option(min=0, max=20, help="Of encoding, until decoding gives it back.")
    ] = None
    guidance: Annotated[float | None, typer.Option(help="Strength of G_psi; 1 is PDAE.")] = None
    guide_from: Annotated[int | None, typer.Option(help="Guide at timesteps t <= this.")] = None
    guide_until: Annotated[int | None, typer.Option(help="Guide at timesteps t >= this.")] = None
    parity: Annotated[
        str | None,
        typer.Option(help="Sample as another program does: pdae, diffae or diffusers."),
    ] = None

    def changes(self) -> dict[str, Any]:
        """The sampling options that were given, by a preset or one by one."""
        from ..diffusion.sampling import PRESETS

        if self.preset is not None and self.preset not in PRESETS:
            raise UsageError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}")
        names = set(SamplingOptions.__annotations__) - {"preset"}
        given = {k: v for k, v in asdict(self).items() if k in names and v is not None}
        return PRESETS.get(self.preset or "default", {}) | given

    def sampling(self) -> Sampling:
        """The default with what was given."""
        from ..diffusion.sampling import Sampling

        return Sampling().changed(self.changes())


@dataclass(frozen=True)
class BatchOptions(SamplingOptions):
    """For commands that go through many files."""

    fit: Annotated[str, typer.Option(help="Pictures that aren't square: crop, pad, stretch.")] = (
        "crop"
    )
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out what exists already.")
    ] = False
    frames: Annotated[str, typer.Option(help="Of animated pictures: first, or all.")] = "first"
    keep_alpha: Annotated[
        bool, typer.Option("--keep-alpha", help="Give outputs their input's transparency.")
    ] = False
    keep_exif: Annotated[
        bool, typer.Option("--keep-exif", help="Copy the input's EXIF: camera, place, time.")
    ] = False
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="Don't write into pictures how they were made.")
    ] = False
    show: Annotated[bool, typer.Option("--show", help="Show each picture in the terminal too.")] = (
        False
    )
    sheet: Annotated[
        str | None, typer.Option(help="Lay the pictures out in this file: a contact sheet.")
    ] = None
    report: Annotated[
        str | None, typer.Option(help="Tell all of the run in this page, out.html.")
    ] = None
    num_processes: Annotated[
        int, typer.Option(min=1, help="Share the inputs out among so many processes.")
    ] = 1
    share: Annotated[
        str | None, typer.Option(help="Do one share alone, e.g. 2/8: for many machines.")
    ] = None

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UsageError(f"unknown --fit {self.fit!r}; known: {', '.join(FITS)}")
        if self.frames not in FRAMES:
            raise UsageError(f"unknown --frames {self.frames!r}; known: {', '.join(FRAMES)}")
        if self.overwrite and self.skip_existing:
            raise UsageError("--overwrite and --skip-existing exclude each other")


@dataclass(frozen=True)
class FileOptions(BatchOptions):
    """For commands over files that the user names."""

    files_from: FilesFrom = None
    null: Null = False
    recursive: Recursive = False
    stream: Stream = None

    def items(self, inputs: list[str] | None, streamed: bool = True) -> Iterable[Item]:
        """The inputs; unless they are `streamed`, --stream is about the output alone."""
        from .run.inputs import collect

        stream = self.stream if streamed else None
        return collect(inputs, self.files_from, self.recursive, null=self.null, stream=stream)


@dataclass(frozen=True)
class PhotoOptions(FileOptions):
    """For edits, which also go into full-size photos."""

    align: Annotated[
        bool,
        typer.Option("--align", help="Find the face and bring it into the model's frame first."),
    ] = False
    landmarks: LandmarksFile = None
    paste_back: Annotated[
        bool,
        typer.Option("--paste-back", help="Put the edited square back into the full-size photo."),
    ] = False


def numbers(text: str) -> list[int]:
    """ "1,2,3" → [1, 2, 3]; an empty text is an empty list."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"{text!r} isn't a list of whole numbers like 1,2,3") from error
