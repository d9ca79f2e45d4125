"""The command line: one file a command, each parses, calls the engine and reports."""

from .app import main

__all__ = ["main"]
