"""Attention on this machine: torch's kernel in bfloat16 and in float32, each forwards and with its
gradient, at a U-Net's sizes; what `networks.layers.attend` chooses by.

    python benchmarks/attention.py --device cpu

The two take turns in every round, and count with their fastest round. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from report import stamp, table

SIZES = [(32, 3, 64), (32, 5, 64), (32, 4, 256)]  # pictures, heads, positions; 32 channels a head
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def seconds(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Time one call on bfloat16 inputs, computed in `dtype`: forwards, and with the gradient."""
    parts = [torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(4)]
    q, k, v = (part.requires_grad_() for part in parts[:3])
    begun = time.perf_counter()
    h = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype)).to(torch.bfloat16)
    _wait(device)
    forwards = time.perf_counter() - begun
    h.backward(parts[3])
    _wait(device)
    return forwards, time.perf_counter() - begun


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    rows: list[list[object]] = []
    for pictures, heads, positions in SIZES:
        shape = (pictures, heads, positions, 32)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in DTYPES}
        for _ in range(args.rounds):
            for name, dtype in DTYPES.items():
                times[name].append(seconds(shape, dtype, args.device))
        best = [min(part) * 1000 for name in DTYPES for part in zip(*times[name], strict=True)]
        rows.append([f"{pictures} x {heads} x {positions}", *best, best[1] / best[3]])
    print(stamp(args.device) + ".\n")
    header = "pictures x heads x positions|bfloat16, ms|with gradient|float32|with gradient|ratio"
    print(table(header, rows))


if __name__ == "__main__":
    main()
