"""Arithmetic on codes: sums, means, neighbours, and what other programs read of them."""

from __future__ import annotations

import csv
import io
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pdae_cli.diffusion.noise import slerp
from pdae_cli.diffusion.sampling import Sampling
from pdae_cli.engine.arithmetic import NOISES, combine, mean, nearest
from pdae_cli.engine.codes import Codes, read_codes, stack, to_bytes
from pdae_cli.engine.tables import to_csv, to_npy, to_npz
from pdae_cli.errors import InputError, PdaeError, UsageError


def codes_of(n: int, seed: int = 0, size: int = 16, **changes: object) -> Codes:
    """Codes with random z (n, 6) and x_T (n, 3, size, size)."""
    draws = torch.Generator().manual_seed(seed)
    values = Codes(
        z=torch.randn(n, 6, generator=draws),
        x_T=torch.randn(n, 3, size, size, generator=draws),
        sources=tuple(f"{seed}-{row}.png" for row in range(n)),
        digests=tuple(f"{seed:032x}{row:032x}" for row in range(n)),
        model="tiny",
        digest="d" * 64,
        sampling={"inference_steps": 5},
    )
    return replace(values, **changes)  # type: ignore[arg-type]


def noise_of(codes: Codes) -> Tensor:
    assert codes.x_T is not None
    return codes.x_T


def rows(codes: Codes) -> list[Codes]:
    return [codes[row : row + 1] for row in range(len(codes))]


class TestSums:
    def test_one_term_is_itself(self) -> None:
        codes = codes_of(3)
        for noise in ("sphere", "plain", "first"):
            same = combine([(1.0, codes)], noise)
            assert torch.equal(same.z, codes.z) and torch.equal(noise_of(same), noise_of(codes))
            assert (same.sources, same.digests) == (codes.sources, codes.digests)

    @pytest.mark.parametrize("noise", NOISES)
    def test_z_is_the_weighted_sum(self, noise: str) -> None:
        a, b, c = (codes_of(2, seed) for seed in range(3))
        summed = combine([(0.5, a), (0.75, b), (-0.25, c)], noise)
        assert torch.allclose(summed.z, 0.5 * a.z + 0.75 * b.z - 0.25 * c.z, atol=1e-6)
        assert summed.sources[1] == "0.5 0-1.png + 0.75 1-1.png - 0.25 2-1.png"

    @pytest.mark.parametrize("weights", [(0.5, 0.5), (0.1, 0.9), (1, 1), (1, 0.5, -0.5)])
    def test_on_the_sphere_x_T_stays_standard_normal(self, weights: tuple[float, ...]) -> None:
        """Its std and kurtosis are those of N(0, 1); a plain sum's std is the root of sum w^2."""
        terms = [(w, codes_of(4, seed, size=64)) for seed, w in enumerate(weights)]
        x = noise_of(combine(terms)).flatten(1)
        assert x.std(dim=1).tolist() == pytest.approx([1] * 4, abs=0.02)
        assert x.pow(4).mean(dim=1).tolist() == pytest.approx([3] * 4, abs=0.2)
        plain = noise_of(combine(terms, "plain")).std().item()
        assert plain == pytest.approx(sum(w * w for w in weights) ** 0.5, abs=0.02)

    def test_halves_meet_where_slerp_does(self) -> None:
        a, b = codes_of(1), codes_of(1, seed=1)
        b = replace(b, x_T=noise_of(b) * noise_of(a).norm() / noise_of(b).norm())
        halfway = slerp(noise_of(a), noise_of(b), 0.5)
        assert torch.allclose(noise_of(combine([(0.5, a), (0.5, b)])), halfway, atol=1e-5)

    def test_equal_terms_dont_grow(self) -> None:
        a = codes_of(2)
        assert torch.allclose(noise_of(combine([(0.5, a), (0.5, a)])), noise_of(a), atol=1e-6)

    def test_a_difference_is_a_direction_and_an_edit_keeps_its_pictures_x_T(self) -> None:
        face, many, few = codes_of(3), codes_of(1, seed=1), codes_of(1, seed=2)
        direction = combine([(1, many), (-1, few)])
        assert direction.x_T is None
        edited = combine([(1, face), (0.3, direction)])
        assert torch.equal(noise_of(edited), noise_of(face)) and edited.digests == face.digests
        at_once = combine([(1, face), (0.3, many), (-0.3, few)], "first")
        assert torch.allclose(at_once.z, edited.z, atol=1e-6)
        assert torch.equal(noise_of(at_once), noise_of(face))

    def test_one_row_goes_with_all(self) -> None:
        many, one = codes_of(3), codes_of(1, seed=1)
        summed = combine([(2, one), (1, many)])
        assert torch.allclose(summed.z, 2 * one.z + many.z, atol=1e-6)
        assert len(summed) == 3 and summed.digests == many.digests
        assert noise_of(combine([(2, one), (1, many)], "first")).shape == noise_of(many).shape
        z_alone = codes_of(3, x_T=None, sampling={})
        assert combine([(1, z_alone), (1, one)]).sampling == one.sampling  # it is x_T's
        with pytest.raises(InputError, match="of 2 and 3 pictures"):
            combine([(1, codes_of(2)), (1, many)])

    @pytest.mark.parametrize("noise", NOISES)
    def test_sums_are_codes_files(self, noise: str) -> None:
        terms = [(0.5, codes_of(2, eps_T=torch.zeros(2, 3, 16, 16))), (-1e30, codes_of(1, seed=1))]
        back = read_codes(io.BytesIO(to_bytes(combine(terms, noise))), "sum")
        assert len(back) == 2 and (back.x_T is None) == (noise == "none") and back.eps_T is None
        long = combine([(0.1, codes_of(1, sources=("x" * 800,))) for _ in range(50)], noise)
        assert len(read_codes(io.BytesIO(to_bytes(long)), "long")) == 1

    @pytest.mark.parametrize("noise", ["sphere", "plain"])
    def test_a_sum_that_overflows_is_refused(self, noise: str) -> None:
        with pytest.raises(InputError, match="too large"):
            combine([(1e39, codes_of(1))], noise)
        with pytest.raises(InputError, match="too large"):
            combine([(1e39, codes_of(1, z=torch.zeros(1, 6)))], "plain")

    def test_unknown_noise_is_named(self) -> None:
        with pytest.raises(UsageError, match="sphere"):
            combine([(1, codes_of(1))], "loud")


class TestMean:
    def test_of_z_and_of_noise(self) -> None:
        codes = codes_of(16, size=64)
        one = mean(codes)
        assert torch.allclose(one.z, codes.z.mean(0, keepdim=True), atol=1e-6)
        assert noise_of(one).std().item() == pytest.approx(0.25, abs=0.01)
        assert noise_of(mean(codes, "sphere")).std().item() == pytest.approx(1, abs=0.02)
        assert torch.equal(noise_of(mean(codes, "first")), noise_of(codes)[:1])
        assert one.sources == ("mean of 16",)

    @pytest.mark.parametrize("noise", ["plain", "sphere", "none"])
    def test_order_doesnt_matter(self, noise: str) -> None:
        parts = rows(codes_of(7))
        expected = to_bytes(mean(stack(parts), noise))
        for seed in range(5):
            random.Random(seed).shuffle(parts)
            assert to_bytes(mean(stack(parts), noise)) == expected

    def test_of_one_is_itself(self) -> None:
        one = codes_of(1)
        assert torch.equal(mean(one).z, one.z) and mean(one).sources == one.sources


class TestNearest:
    @pytest.mark.parametrize("metric", ["cosine", "euclidean"])
    def test_itself_at_nought(self, metric: str) -> None:
        library = torch.randn(50, 6)
        distances, found = nearest(library, library, 3, metric)
        assert found[:, 0].tolist() == list(range(50))
        assert (distances[:, 0] == 0).all() and (distances[:, 1] > 0).all()
        assert (distances.diff(dim=1) >= 0).all()

    def test_cosine_by_hand(self) -> None:
        library = torch.tensor([[0.0, 2.0], [3.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
        distances, found = nearest(torch.tensor([[5.0, 0.0]]), library, 9)
        assert found.tolist() == [[1, 3, 0, 2]]
        assert distances[0].tolist() == pytest.approx([0, 1 - 0.5**0.5, 1, 2])

    def test_euclidean_counts_in_standard_deviations(self) -> None:
        """A dimension's unit doesn't matter, one without spread is taken as it is."""
        library, query = torch.randn(40, 3), torch.randn(4, 3)
        there = nearest(query, library, 5, "euclidean")
        units = torch.tensor([1000.0, 0.01, 1.0])
        scaled = nearest(query * units, library * units, 5, "euclidean")
        assert torch.equal(there[1], scaled[1]) and torch.allclose(there[0], scaled[0])
        same = torch.ones(3, 4)
        distances, _ = nearest(same + 2, same, 1, "euclidean")
        assert distances.tolist() == [[2.0]] * 3

    def test_in_parts_as_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library, query = torch.randn(20, 6), torch.randn(9, 6)
        whole = nearest(query, library, 4)
        monkeypatch.setattr("pdae_cli.engine.arithmetic.CHUNK", 45)
        assert all(
            torch.equal(a, b) for a, b in zip(nearest(query, library, 4), whole, strict=True)
        )

    def test_unknown_metric_is_named(self) -> None:
        with pytest.raises(UsageError, match="euclidean"):
            nearest(torch.ones(1, 2), torch.ones(1, 2), 1, "manhattan")


class TestRefusals:
    OTHERS = (
        ({"digest": "e" * 64, "model": "other"}, "other, weights eeeeeeeeeeee.*tiny, weights ddd"),
        ({"z": torch.randn(1, 7)}, "z of size 7.*z of size 6"),
        ({"x_T": torch.randn(1, 3, 4, 4)}, "x_T of size"),
        ({"sampling": {"inference_steps": 6}}, "settings.*6.*settings.*5"),
    )

    @pytest.mark.parametrize(("change", "message"), OTHERS)
    def test_unlike_codes_dont_go_together(self, change: dict[str, object], message: str) -> None:
        pair = [codes_of(1), codes_of(1, seed=1, **change)]
        with pytest.raises(InputError, match=f"b.safetensors.*{message}"):
            stack(pair, ["a.safetensors", "b.safetensors"])
        with pytest.raises(InputError, match=message):
            combine([(0.5, one) for one in pair])

    def test_the_odd_one_is_found_behind_one_that_doesnt_say(self) -> None:
        unknown = codes_of(1, digest="", x_T=None)
        for order in itertools.permutations([unknown, codes_of(1), codes_of(1, digest="e" * 64)]):
            with pytest.raises(InputError, match="don't go together"):
                combine([(1, one) for one in order])

    def test_the_same_weights_by_another_name_are_the_same(self) -> None:
        assert len(stack([codes_of(1), codes_of(1, model="copy")])) == 2

    def test_z_alone_doesnt_ask_how_x_T_was_made(self) -> None:
        pair = [codes_of(1, x_T=None), codes_of(1, x_T=None, sampling=Sampling().__dict__)]
        assert combine([(0.5, one) for one in pair]).x_T is None

    def test_with_and_without_x_T_cant_be_stacked(self) -> None:
        with pytest.raises(PdaeError, match="x_T"):
            stack([codes_of(1), codes_of(1, x_T=None)])


class TestTables:
    def hostile(self) -> Codes:
        names = ('comma, "quote"', "line\nbreak", "ü 😀", "")
        z = torch.tensor([[1 / 3, 1e-45, 3.4e38, -0.0, 16777217.0, 0.1]]).repeat(4, 1)
        return codes_of(4, sources=names, z=z)

    def test_csv_gives_every_number_back(self) -> None:
        codes = self.hostile()
        header, *lines = csv.reader(io.StringIO(to_csv(codes).decode(), newline=""))
        assert header == ["source", "z0", "z1", "z2", "z3", "z4", "z5"]
        assert tuple(line[0] for line in lines) == codes.sources
        back = torch.tensor([[float(value) for value in line[1:]] for line in lines])
        assert torch.equal(back, codes.z)

    @pytest.mark.parametrize("count", [1, 4, 1000])
    def test_numpy_reads_npy(self, count: int) -> None:
        z = codes_of(count, size=1).z
        read = np.load(io.BytesIO(to_npy(codes_of(count, size=1))), allow_pickle=False)
        assert read.dtype == np.float32 and np.array_equal(read, z.numpy())

    def test_numpy_reads_npz(self) -> None:
        codes = self.hostile()
        archive = np.load(io.BytesIO(to_npz(codes)), allow_pickle=False)
        assert set(archive) == {"z", "x_T", "sources"}
        assert np.array_equal(archive["x_T"], noise_of(codes).numpy())
        assert tuple(archive["sources"]) == codes.sources
        alone = np.load(io.BytesIO(to_npz(replace(codes, x_T=None))), allow_pickle=False)
        assert set(alone) == {"z", "sources"}

    def test_the_same_codes_make_the_same_file(self) -> None:
        assert to_npz(codes_of(2)) == to_npz(codes_of(2))
