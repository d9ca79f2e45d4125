"""Make the values that `pdae selftest` compares with, after a model's weights have changed:

python benchmarks/selftest_values.py weights/faces64
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pdae_cli
from pdae_cli.engine import tensors as safe
from pdae_cli.engine.model import Model
from pdae_cli.evaluation import selftest
from pdae_cli.evaluation.metrics import equal_share
from pdae_cli.files import write_bytes


def write_values(folder: Path, model: Model) -> None:
    """Compute a model's values here, and write them beside its weights."""
    pictures = selftest.drawn(model.config.image_size, model.config.channels)
    equal = equal_share(selftest.computed(model, pictures)["decoded"], pictures).mean().item()
    facts = {"of": selftest.made_of(folder), "equal": equal}
    values = selftest.computed(model, pictures[:1])
    content = safe.sealed(values, {"pdae": json.dumps(facts, sort_keys=True)})
    write_bytes(folder / selftest.VALUES, content)


if __name__ == "__main__":
    write_values(Path(sys.argv[1]), pdae_cli.load(sys.argv[1], "cpu"))
