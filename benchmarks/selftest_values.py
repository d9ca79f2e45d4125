"""Make the values that `pdae selftest` compares with, after a model's weights have changed:

python benchmarks/selftest_values.py weights/faces64
"""

from __future__ import annotations

import sys
from pathlib import Path

import pdae_cli
from pdae_cli.evaluation.selftest import write_values

if __name__ == "__main__":
    write_values(Path(sys.argv[1]), pdae_cli.load(sys.argv[1], "cpu"))
