"""The pictures, and what a step sees of them: a function of (seed, step, row) alone."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import picture
from small_runs import OPTIONS, drawn, folder_of

from pdae_cli.errors import InputError
from pdae_cli.training.data import Pictures, open_pictures, split
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


def test_a_picture_that_cant_be_read_is_replaced_and_counted(tmp_path: Path) -> None:
    for number in range(300):
        picture(number, (4, 4)).save(tmp_path / f"{number:03}.png")
    (tmp_path / "100.png").write_bytes(b"no")
    pictures = open_pictures(tmp_path, 4)
    assert torch.equal(pictures[100], pictures[101]) and list(pictures.bad) == ["100.png"]
    for number in range(20):
        (tmp_path / f"{number:03}.png").write_bytes(b"no")
    with pytest.raises(InputError, match="can't be read, the first"):
        open_pictures(tmp_path, 4).stack(range(30))


def test_where_none_can_be_read_none_is_replaced(tmp_path: Path) -> None:
    """A single one, as may be held out, and two."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no")
        pictures = open_pictures(tmp_path, 4)
        with pytest.raises(InputError, match=f"{len(pictures)} of {len(pictures)} pictures can't"):
            pictures.stack([0])


def test_zip_bombs_arent_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 100_000)
    monkeypatch.setattr("pdae_cli.training.data.MAX_FILE", 1000)
    with pytest.raises(InputError, match="unpacks to more"):
        open_pictures(path, 4)._bytes("a.png")


@pytest.mark.parametrize(
    ("count", "held_out"), [(2, 1), (3, 1), (4, 2), (19, 2), (120, 12), (600, 32), (5000, 89)]
)
def test_split_follows_names_not_order(tmp_path: Path, count: int, held_out: int) -> None:
    """A tenth of few, 32 of some; of many the 2 % that their own hashes say, whatever else is."""
    names = [f"{number}.png" for number in range(count)]
    parts = split(Pictures(tmp_path, names, 1), None)
    again = split(Pictures(tmp_path, names[::-1], 1), None)
    for part, other in zip(parts, again, strict=True):
        assert set(part.names) == set(other.names)
    train, chosen = parts
    assert len(chosen) == held_out and sorted(train.names + chosen.names) == sorted(names)
    digests = {n: hashlib.sha256(n.encode()).digest()[:4] for n in names}
    shares = {n: int.from_bytes(digest, "little") / 2**32 for n, digest in digests.items()}
    assert max(shares[n] for n in chosen.names) < min(shares[n] for n in train.names)
    if count == 5000:
        assert set(chosen.names) == {n for n in names if shares[n] < 0.02}
