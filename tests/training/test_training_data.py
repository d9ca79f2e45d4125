"""The pictures, and what a step sees of them: a function of (seed, step, row) alone."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import picture
from small_runs import OPTIONS, drawn, folder_of

from pdae_cli.errors import InputError, UsageError
from pdae_cli.pictures.listing import Listing
from pdae_cli.training.data import Pictures, PictureSource, names_sha, open_pictures, split
from pdae_cli.training.labels import Labels
from pdae_cli.training.stage import order


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return open_pictures(folder_of(tmp_path_factory.mktemp("photos")), 32)


def test_an_epoch_sees_every_picture_once() -> None:
    assert sorted(order(50, 3, 50, 50).tolist()) == list(range(50))
    assert order(50, 3, 0, 50).tolist() != order(50, 3, 50, 50).tolist()
    assert order(50, 3, 40, 20).tolist() == order(50, 3, 0, 100).tolist()[40:60]


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_are_the_rows_of_one_batch(pictures: Pictures, shards: int) -> None:
    """Pictures, timesteps, noise and flips: to the bit, however a step is cut up."""
    count = 8 // shards
    whole = drawn(pictures, 3, 0, 8)
    parts = [drawn(pictures, 3, n * count, count) for n in range(shards)]
    for together, one in zip(zip(*parts, strict=True), whole, strict=True):
        assert one is None or torch.equal(torch.cat(together), one)
    assert len({row.sum().item() for row in whole.eps}) == 8


def test_a_batch_is_a_function_of_seed_step_and_row(pictures: Pictures) -> None:
    def draw(seed: int = 0, step: int = 0, first: int = 0) -> torch.Tensor:
        return drawn(pictures, step, first, 4, options=replace(OPTIONS, seed=seed)).eps

    assert torch.equal(draw(), draw())
    for other in (draw(seed=1), draw(step=1), draw(first=4)):
        assert not torch.equal(draw(), other)


def test_noise_is_normal_and_timesteps_are_uniform(pictures: Pictures) -> None:
    batches = [drawn(pictures, step, 0, 8) for step in range(60)]
    eps = torch.cat([batch.eps for batch in batches])
    t = torch.cat([batch.t for batch in batches]).double()
    assert abs(eps.mean()) < 0.01 and abs(eps.std() - 1) < 0.01
    assert abs(t.mean() - 499.5) < 60 and t.min() < 50 and t.max() > 949


def test_flips_are_fair(pictures: Pictures) -> None:
    options = replace(OPTIONS, batch_size=24)
    plain = drawn(pictures, 0, 0, 24, options=replace(options, flip=False)).x_0
    mixed = drawn(pictures, 0, 0, 24, options=options).x_0
    flipped = [not torch.equal(a, b) for a, b in zip(plain, mixed, strict=True)]
    assert 4 <= sum(flipped) <= 20
    assert all(
        torch.equal(a, b) or torch.equal(a.flip(2), b) for a, b in zip(plain, mixed, strict=True)
    )


def test_a_bad_picture_is_left_out_with_its_name(tmp_path: Path) -> None:
    """The others keep their names and pixels, whichever is bad, and each is said once."""
    for number in range(30):
        picture(number, (4, 4)).save(tmp_path / f"{number:03}.png")
    whole = open_pictures(tmp_path, 4)
    for bad in ("000.png", "012.png", "029.png"):
        (tmp_path / bad).write_bytes(b"no")
    said: list[str] = []
    pictures = open_pictures(tmp_path, 4, warn=said.append)
    with pytest.raises(InputError, match=r"012.png"):
        pictures.stack([11, 12])
    checked = pictures.checked()
    assert checked.names == [name for name in whole.names if name not in pictures.bad]
    assert list(pictures.bad) == ["000.png", "012.png", "029.png"]
    for row, name in enumerate(checked.names):
        assert torch.equal(checked[row], whole[whole.names.index(name)])
    again = pictures.subset(range(len(pictures))[::-1]).checked()
    assert again.names == list(reversed(checked.names)) and len(said) == 3
    assert all("left out" in line for line in said)
    rows = pictures.readable([12, 3, 0, 5, 7], 2)
    assert rows == [3, 5]


def test_most_or_all_of_what_is_needed_bad(tmp_path: Path) -> None:
    for number in range(8):
        picture(number, (4, 4)).save(tmp_path / f"{number}.png")
        if number < 5:
            (tmp_path / f"{number}.png").write_bytes(b"no")
    pictures = open_pictures(tmp_path, 4)
    with pytest.raises(InputError, match="none of the 1 pictures"):
        pictures.subset([pictures.names.index("3.png")]).checked()
    with pytest.raises(InputError, match=r"5 of 8 pictures can't be read, the first: 3.png"):
        pictures.checked()


def test_a_folder_that_cant_be_opened_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = Listing(tmp_path, ["a.png"], closed={"locked": "Permission denied"})
    monkeypatch.setattr("pdae_cli.training.data.list_pictures", lambda *a, **k: listing)
    with pytest.raises(InputError, match="locked: can't be opened: Permission denied"):
        open_pictures(tmp_path, 4)


@pytest.mark.parametrize(
    ("count", "held_out"), [(2, 1), (20, 1), (24, 2), (120, 10), (600, 32), (5000, 89)]
)
def test_split_follows_names_not_order(tmp_path: Path, count: int, held_out: int) -> None:
    """A twelfth of few, 32 of some; of many the 2 % that their own hashes say, whatever else is."""
    names = [f"{number}.png" for number in range(count)]

    def named(names: list[str]) -> Pictures:
        return Pictures(PictureSource(tmp_path, names, str.encode), 1, 1, "crop")

    parts, again = split(named(names), None), split(named(names[::-1]), None)
    for part, other in zip(parts, again, strict=True):
        assert set(part.names) == set(other.names)
    train, chosen = parts
    assert len(chosen) == held_out and sorted(train.names + chosen.names) == sorted(names)
    digests = {n: hashlib.sha256(n.encode()).digest()[:4] for n in names}
    shares = {n: int.from_bytes(digest, "little") / 2**32 for n, digest in digests.items()}
    assert max(shares[n] for n in chosen.names) < min(shares[n] for n in train.names)
    if count == 5000:
        assert set(chosen.names) == {n for n in names if shares[n] < 0.02}


def test_what_leaves_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    """Too few pictures, or labels that hold out all of many."""
    names = [f"{number}.png" for number in range(2000)]
    for some, held_out, words in (
        (names[:1], set[str](), "needs at least two pictures"),
        (names, set(names), "has 2000 pictures, all held out by its labels; say train of some"),
    ):
        labels = Labels([], {name: [] for name in some}, held_out, {}, {})
        pictures = Pictures(PictureSource(tmp_path, some, str.encode), 1, 1, "crop")
        with pytest.raises(UsageError, match=words):
            split(pictures, labels)


def test_names_need_not_be_utf_8(tmp_path: Path) -> None:
    """A folder's may be any bytes, which Python keeps as surrogates."""
    names = [os.fsdecode(b"\xe9%d.png" % number) for number in range(24)]
    pictures = Pictures(PictureSource(tmp_path, names, str.encode), 1, 1, "crop")
    train, held_out = split(pictures, None)
    assert sorted(train.names + held_out.names) == sorted(names) and len(held_out) == 2
    assert len(names_sha(train, held_out)) == 12
