"""pdae: pictures to codes, codes to pictures, and edits by moving the codes.

`load(name)` opens a model; `Codes` is what its `encode` returns. See `engine.Model`, and of the way
to folders and the Hub `checkpoints.Model`.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["Codes", "Model", "Sampling", "__version__", "load"]

TYPE_CHECKING = False  # as typing's, which takes longer to load than Ctrl-C may be unheard
if TYPE_CHECKING:
    from typing import Any

    from .checkpoints import Model, load
    from .diffusion.trajectory import Sampling
    from .engine.codes import Codes


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for (PEP 562)."""
    if name == "load":
        from .checkpoints import load

        return load
    if name == "Model":
        from .checkpoints import Model

        return Model
    if name == "Sampling":
        from .diffusion.trajectory import Sampling

        return Sampling
    if name == "Codes":
        from .engine.codes import Codes

        return Codes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
