"""Labels that nothing but the names of folders says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdae_cli.training.labels import find_labels


def test_folders_are_classes(tmp_path: Path) -> None:
    names = ["all/hat/1.png", "all/hat/deep/2.png", "all/none/3.png"]
    labels = find_labels(tmp_path, None, names)
    assert labels is not None and labels.attributes == ["hat", "none"]
    assert labels.matrix(names).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert labels.remarks == ["each folder is taken for a class: hat (2), none (1)"]


def test_classes_may_lie_in_the_parts_of_a_split(tmp_path: Path) -> None:
    """As most sets for classification do."""
    names = [
        "d/train/hat/1.png",
        "d/train/none/1.png",
        "d/val/hat/2.png",
        "d/val/none/deep/2.png",
    ]
    labels = find_labels(tmp_path, None, names)
    assert labels is not None and labels.attributes == ["hat", "none"]
    assert labels.matrix(names).tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert labels.held_out == set(names[2:])


@pytest.mark.parametrize(
    "names",
    [["a.png", "b.png"], ["x/a.png", "b.png"], ["x/a.png", "x/b.png"],
     ["00000/a.png", "01000/b.png"], ["test/a.png", "val/b.png"], ["train/a.png", "b.png"],
     ["test/hat/a.png", "val/b.png"]],
)  # fmt: skip
def test_or_none(tmp_path: Path, names: list[str]) -> None:
    assert find_labels(tmp_path, None, names) is None
