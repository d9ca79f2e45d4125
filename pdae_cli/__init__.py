"""pdae: pictures to codes, codes to pictures, and edits by moving the codes.

`load(name)` opens a model; `Codes` is what its `encode` returns. See `engine.Model`, and of the way
to folders and the Hub `checkpoints.Model`.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["Codes", "Model", "Sampling", "__version__", "from_table", "load", "to_table"]

TYPE_CHECKING = False  # as typing's, which takes longer to load than Ctrl-C may be unheard
if TYPE_CHECKING:
    from typing import Any

    from .checkpoints import Model, load
    from .diffusion.trajectory import Sampling
    from .engine.codes import Codes
    from .engine.columns import from_table, to_table


HOMES = {
    "load": "checkpoints", "Model": "checkpoints", "Sampling": "diffusion.trajectory",
    "Codes": "engine.codes", "from_table": "engine.columns", "to_table": "engine.columns",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for (PEP 562)."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return vars(import_module(f"{__name__}.{HOMES[name]}"))[name]
