"""Locks on single bytes of a file, which the system drops when their process ends."""

from __future__ import annotations

import sys
from typing import IO

if sys.platform == "win32":
    import msvcrt

    def lock(file: IO[bytes], place: int) -> bool:
        """Lock the byte at `place` for this process; False if another has it."""
        file.seek(place % (1 << 31))
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(file: IO[bytes], place: int) -> None:
        """Let others have the byte at `place`."""
        file.seek(place % (1 << 31))
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def lock(file: IO[bytes], place: int) -> bool:
        """Lock the byte at `place` for this process; False if another has it."""
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):  # which of them depends on the system
            return False
        return True

    def unlock(file: IO[bytes], place: int) -> None:
        """Let others have the byte at `place`."""
        fcntl.lockf(file, fcntl.LOCK_UN, 1, place)
