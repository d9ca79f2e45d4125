"""A model of ours as a pipeline of diffusers: what the pipeline.py of an export imports, and by
this name its model_index.json. Outputs are `Model`'s to the bit.

Annotations are evaluated: older diffusers looks for a component's type in the signature.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from torch import Generator, Tensor, nn

from ..diffusion.trajectory import Sampling
from ..engine.attributes import Scale
from ..engine.codes import Codes
from ..engine.computing import PRECISIONS
from ..engine.model import Model
from ..errors import UsageError
from ..pictures.images import Pictures, to_image, to_pixels
from .export import write_pipeline
from .find import load

DTYPES = {dtype: name for name, dtype in PRECISIONS.items()}


def _share(x: Tensor) -> Tensor:
    """[-1, 1] → 0 … 1, as diffusers hands pictures out."""
    return (x / 2 + 0.5).clamp(0, 1)


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "pil": lambda x: [to_image(pixels) for pixels in to_pixels(x)],
    "np": lambda x: _share(x).permute(0, 2, 3, 1).numpy(),
    "pt": _share,
}


class PDAE(ModelMixin):
    """A `Model` as a component: diffusers loads it, moves it and chooses its precision."""

    def __init__(self, model: Model, folder: Path) -> None:
        super().__init__()
        self.model, self.folder = model, folder
        self.parts = nn.ModuleList(model.networks())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **others: Any
    ) -> Self:
        """Load a model's folder onto the CPU. Raises ModelError, and UsageError for what a model
        of ours doesn't have: parts on several devices, quantised weights, variants."""
        if others.get("device_map"):
            cls.load_config()
        wrong = "quantization_config", "use_flashpack", "variant"
        if asked := [name for name in wrong if others.get(name)]:
            raise UsageError(f"a model of pdae has no {', '.join(asked)}; leave that out")
        model = load(str(folder), "cpu")
        if torch_dtype is not None:  # not by `to`: float16 is refused on a CPU, and may leave it
            model.dtype = _precision(torch_dtype)
        return cls(model, Path(folder).resolve())

    @classmethod
    def load_config(cls, *_: Any, **__: Any) -> None:
        """Raise UsageError: diffusers asks for a config where parts shall go to several devices."""
        raise UsageError("a model of pdae lies on one device; take .to(device), not device_map")

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Self:  # type: ignore[override]
        """Move the networks, and choose the precision that they compute in. Raises UsageError."""
        name = self.model.dtype if dtype is None else _precision(dtype)
        self.model.to(str(self.model.device if device is None else device), name)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the networks compute in; their weights stay float32."""
        return PRECISIONS[self.model.dtype]


class PDAEPipeline(DiffusionPipeline):
    """New pictures, codes of pictures, pictures of codes. `changes` are fields of Sampling, and
    num_inference_steps."""

    pdae: PDAE

    def __init__(self, pdae: PDAE) -> None:
        super().__init__()
        self.register_modules(pdae=pdae)  # type: ignore[attr-defined]

    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator | list[Generator] | None = None,
        num_inference_steps: int = Sampling.inference_steps,
        output_type: str = "pil",
        return_dict: bool = True,
        unconditional: bool | None = None,
        **changes: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Make new pictures: `Model.sample` of numbers drawn from the generator, or from one a
        picture. `unconditional` is of eps_theta alone; None: where there is no latent DPM.
        `output_type`: pil, or 0 … 1 as np (N, H, W, C) or pt (N, C, H, W)."""
        model = self.pdae.model
        sampling = _sampling(changes | {"num_inference_steps": num_inference_steps})
        own = generator if isinstance(generator, list) else [generator] * batch_size
        if not len(own) == batch_size > 0:
            raise UsageError(f"batch_size is {batch_size}, with {len(own)} generators")
        devices = ["cpu" if one is None else one.device for one in own]
        drawn = [
            torch.randint(1 << 62, (1,), generator=one, device=device).item()
            for one, device in zip(own, devices, strict=True)
        ]
        if unconditional is None:
            unconditional = model.latent_dpm is None and not model.takes_z
        with self._solving(batch_size, sampling, output_type):
            made, _ = model.sample(drawn, sampling, unconditional=unconditional)
        images = OUTPUTS[output_type](made)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def encode(self, images: Pictures, *, noise: bool = True, **changes: Any) -> Codes:
        """`Model.encode`: z and, with `noise`, x_T."""
        model, sampling = self.pdae.model, _sampling(changes)
        x_0 = model.pictures(images)
        with self._solving(len(x_0) * noise, sampling, encode=True):
            return model.encode(x_0, sampling, noise=noise)

    def decode(
        self, codes: Codes, output_type: str = "pil", *, random_noise: bool = False, **changes: Any
    ) -> ImagePipelineOutput:
        """`Model.decode`, as they were encoded but for the changes."""
        sampling = _sampling(changes, codes.sampling)
        with self._solving(len(codes), sampling, output_type):
            made = self.pdae.model.decode(codes, sampling, random_noise=random_noise)
        return ImagePipelineOutput(images=OUTPUTS[output_type](made))

    def manipulate(
        self, codes: Codes, changes: Sequence[tuple[str, Scale]], keep: Sequence[str] = ()
    ) -> Codes:
        """`Model.manipulate`: z moved along attributes, to be decoded."""
        return self.pdae.model.manipulate(codes, changes, keep)

    def interpolate(
        self,
        codes: Codes,
        count: int,
        output_type: str = "pil",
        *,
        mode: str = "latent",
        **changes: Any,
    ) -> ImagePipelineOutput:
        """`Model.interpolate`: so many pictures from the first of two codes to the second."""
        sampling = _sampling(changes, codes.sampling)
        with self._solving(count, sampling, output_type):
            made = self.pdae.model.interpolate(codes, count, sampling, mode=mode)
        return ImagePipelineOutput(images=OUTPUTS[output_type](made))

    def save_pretrained(self, save_directory: str | Path, **others: Any) -> None:
        """Copy the folder that this was loaded from. Raises UsageError for what would change it."""
        usual = {"safe_serialization": True}
        asked = [name for name, one in others.items() if (one or False) != usual.get(name, False)]
        if asked:
            raise UsageError(f"a pipeline of pdae is saved as it is; leave {', '.join(asked)} out")
        write_pipeline(self.pdae.folder, Path(save_directory))

    @contextmanager
    def _solving(
        self, count: int, sampling: Sampling, output_type: str = "pt", encode: bool = False
    ) -> Iterator[None]:
        """A progress bar of the network's evaluations, of so many pictures. Raises UsageError for
        an output_type that isn't known."""
        if output_type not in OUTPUTS:
            raise UsageError(f"unknown output_type {output_type!r}; known: {', '.join(OUTPUTS)}")
        model, before = self.pdae.model, self.pdae.model.evaluated
        there, back = model.trajectory(sampling).evaluations()
        total = count * (there if encode else back)
        with self.progress_bar(total=total) as bar:  # type: ignore[attr-defined]
            model.evaluated = bar.update
            try:
                yield
            finally:
                model.evaluated = before


def _sampling(changes: dict[str, Any], recorded: dict[str, Any] | None = None) -> Sampling:
    """What was recorded, with changes, which diffusers' num_inference_steps may be among."""
    if "num_inference_steps" in changes:
        steps = changes.pop("num_inference_steps")
        changes = dict(inference_steps=steps, **changes)  # not both
    return Sampling().changed(recorded or {}).changed(changes)


def _precision(dtype: torch.dtype) -> str:
    """Our name of a dtype. Raises UsageError."""
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype}; known: {', '.join(map(str, DTYPES))}")
    return DTYPES[dtype]
