"""What the benchmarks share: tables, where they were measured, and the place for them in a text."""

from __future__ import annotations

import platform
from datetime import date
from pathlib import Path

import torch

from pdae_cli.checkpoints.card import with_section

MARK = "figures"


def table(header: str, rows: list[list[object]]) -> str:
    """A Markdown table; numbers get four digits."""
    columns = header.split("|")

    def shown(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(shown, row)) + " |" for row in rows])


def hardware(device: torch.device | str = "cpu") -> str:
    """What this runs on."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1] for line in cpuinfo.read_text().splitlines() if "name" in line
        ]
        model = names[0].strip() if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def stamp(device: torch.device | str = "cpu") -> str:
    """When and on what figures were measured."""
    return f"Measured {date.today().isoformat()} on {hardware(device)}, torch {torch.__version__}"


def write_between_marks(text: Path, figures: str) -> None:
    """Replace what stands between a text's two marks."""
    text.write_text(with_section(text.read_text(), MARK, figures))
