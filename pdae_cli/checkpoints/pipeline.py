"""A model of ours as a pipeline of diffusers: what the pipeline.py of an export imports, and by
this name its model_index.json. Outputs are `Model`'s to the bit.

Annotations are evaluated: older diffusers looks for a component's type in the signature.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from torch import Generator, Tensor, nn

from ..diffusion.trajectory import Sampling, to_decode
from ..engine.attributes import Scale
from ..engine.codes import Codes
from ..engine.computing import PRECISIONS
from ..engine.model import Model
from ..errors import UsageError, check_known
from ..pictures.images import Images, to_image, to_pixels
from .export import export
from .find import load

DTYPES = {dtype: name for name, dtype in PRECISIONS.items()}
OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "pil": lambda x: [to_image(pixels) for pixels in to_pixels(x)],
    "np": lambda x: OUTPUTS["pt"](x).permute(0, 2, 3, 1).numpy(),
    "pt": lambda x: (x / 2 + 0.5).clamp(0, 1),
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
        """Load a model's folder onto the CPU. Raises ModelError, UsageError."""
        if others.get("device_map") or others.get("quantization_config"):
            cls.load_config()
        made = cls(load(str(folder), "cpu"), Path(folder).resolve())
        if torch_dtype is torch.float16:  # which `to` refuses on a CPU: it may be on its way
            made.model.dtype = "float16"
            return made
        return made.to(dtype=torch_dtype)

    @classmethod
    def load_config(cls, *_: Any, **__: Any) -> None:
        """Raise UsageError: diffusers asks this before it spreads a model over devices."""
        raise UsageError("a model of pdae takes no device_map and no quantization_config")

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Self:  # type: ignore[override]
        """Move the networks, and choose the precision that they compute in. Raises UsageError."""
        name = DTYPES.get(dtype or self.dtype, str(dtype))
        self.model.to(str(device or self.model.device), name)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the networks compute in; their weights stay float32."""
        return PRECISIONS[self.model.dtype]


class PDAEPipeline(DiffusionPipeline):
    """New pictures, codes of pictures, pictures of codes. `changes` are fields of Sampling; of
    `output_type` pil is 8-bit, np (N, H, W, C) and pt (N, C, H, W) are 0 … 1."""

    pdae: PDAE

    def __init__(self, pdae: PDAE) -> None:
        super().__init__()
        self.register_modules(pdae=pdae)  # type: ignore[attr-defined]

    def __call__(
        self, batch_size: int = 1, generator: Generator | list[Generator] | None = None,
        num_inference_steps: int = Sampling.inference_steps, output_type: str = "pil",
        unconditional: bool | None = None, **changes: Any,
    ) -> ImagePipelineOutput:  # fmt: skip
        """Make new pictures: `Model.sample` of numbers drawn from the generator, or from one a
        picture. `unconditional` is of eps_theta alone; None: where there is no latent DPM."""
        model, settings = self.pdae.model, dict(inference_steps=num_inference_steps, **changes)
        own = generator if isinstance(generator, list) else [generator] * batch_size
        if not len(own) == batch_size > 0:
            raise UsageError(f"batch_size is {batch_size}, with {len(own)} generators")
        places = [(one, "cpu" if one is None else one.device) for one in own]
        drawn = [int(torch.randint(1 << 62, (1,), generator=g, device=at)) for g, at in places]
        if unconditional is None:
            unconditional = model.latent_dpm is None and not model.takes_z
        make = partial(model.sample, drawn, unconditional=unconditional)
        return self._pictures(output_type, batch_size, settings, lambda given: make(given)[0])

    def encode(self, images: Images, *, noise: bool = True, **changes: Any) -> Codes:
        """`Model.encode`: z and, with `noise`, x_T."""
        x_0 = self.pdae.model.pictures(images)
        make = partial(self.pdae.model.encode, x_0, noise=noise)
        return self._watched(0, len(x_0) * noise, changes, make)

    def decode(self, codes: Codes, output_type: str = "pil", **changes: Any) -> ImagePipelineOutput:
        """`Model.decode`, as they were encoded but for the changes."""
        make = partial(self.pdae.model.decode, codes)
        settings = to_decode(codes.sampling, changes).record()
        return self._pictures(output_type, len(codes), settings, make)

    def manipulate(
        self, codes: Codes, changes: Sequence[tuple[str, Scale | float]], keep: Sequence[str] = ()
    ) -> Codes:
        """`Model.manipulate`: z moved along attributes, to be decoded."""
        return self.pdae.model.manipulate(codes, changes, keep)

    def interpolate(
        self, codes: Codes, count: int, output_type: str = "pil", **changes: Any
    ) -> ImagePipelineOutput:
        """`Model.interpolate`: so many pictures from the first of two codes to the second."""
        make = partial(self.pdae.model.interpolate, codes, count)
        settings = to_decode(codes.sampling, changes).record()
        return self._pictures(output_type, count, settings, make)

    def save_pretrained(self, save_directory: str | Path, **others: Any) -> None:
        """Copy the folder that this was loaded from. Raises UsageError for any other wish."""
        if not others.pop("safe_serialization", True) or any(others.values()):
            raise UsageError("a pipeline of pdae is saved as it is; name the folder alone")
        export(self.pdae.model, self.pdae.folder, Path(save_directory))

    def _pictures(self, output_type: str, *what: Any) -> ImagePipelineOutput:
        """Hand out pictures that `_watched` makes."""
        check_known("output_type", output_type, OUTPUTS, UsageError)
        return ImagePipelineOutput(images=OUTPUTS[output_type](self._watched(1, *what)))

    def _watched(self, way: int, count: int, settings: Any, make: Callable[..., Any]) -> Any:
        """Encode (way 0) or decode (1) so many under a progress bar of the evaluations."""
        model, sampling = self.pdae.model, Sampling().changed(settings)
        before, total = model.evaluated, count * model.trajectory(sampling).evaluations()[way]
        with self.progress_bar(total=total) as bar:  # type: ignore[attr-defined]
            model.evaluated = bar.update
            try:
                return make(sampling)
            finally:
                model.evaluated = before
