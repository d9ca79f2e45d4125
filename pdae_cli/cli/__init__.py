"""The command line: one file a command, each parses, calls the engine and reports."""

import os
import signal
from types import FrameType

from ..errors import STOPPED, STOPPING


def main() -> None:
    """Run the command line and exit. Signals are listened to before all else is loaded, unless they
    are to be ignored, as nohup has it."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupted)
    from .app import run

    run()


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt. While a module is loaded nothing is in work yet, and what it loads
    may turn that into any other error: then the process ends at once."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            try:
                os.write(2, b"interrupted\n")
            finally:
                os._exit(STOPPED)
        frame = frame.f_back
    raise KeyboardInterrupt
