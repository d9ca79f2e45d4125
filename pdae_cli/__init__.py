"""pdae: pictures to codes, codes to pictures, and edits by moving the codes.

`load(name)` opens a model; `Codes` is what its `encode` returns. See `engine.Model`, and of the way
to folders and the Hub `checkpoints.PretrainedModel`, which is `pdae_cli.Model`.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["Codes", "Model", "Sampling", "__version__", "from_table", "load", "to_table"]

TYPE_CHECKING = False  # as typing's, which takes longer to load than Ctrl-C may be unheard
if TYPE_CHECKING:
    from typing import Any

    from .checkpoints import PretrainedModel as Model
    from .checkpoints import load
    from .diffusion.trajectory import Sampling
    from .engine.codes import Codes
    from .engine.columns import from_table, to_table


HOMES = {
    "load": "checkpoints.load", "Model": "checkpoints.PretrainedModel",
    "Sampling": "diffusion.trajectory.Sampling", "Codes": "engine.codes.Codes",
    "from_table": "engine.columns.from_table", "to_table": "engine.columns.to_table",
}  # fmt: skip


def __dir__() -> list[str]:
    """Name what isn't imported yet, too."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for (PEP 562)."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, own = HOMES[name].rpartition(".")
    return vars(import_module(f"{__name__}.{module}"))[own]
