"""Codes: their files, sums, means, neighbours, and what other programs read of them."""

from __future__ import annotations

import csv
import io
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_codes import codes_of, rows
from torch import Tensor

from pdae_cli.diffusion.noise import slerp
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine.codes import (
    NOISES,
    Codes,
    between,
    combine,
    from_bytes,
    mean,
    nearest,
    one_file,
    stack,
    to_bytes,
)
from pdae_cli.engine.columns import to_csv, to_npy, to_npz, to_table
from pdae_cli.errors import InputError, PdaeError, UsageError


def noise_of(codes: Codes) -> Tensor:
    return codes.tensors()["x_T"]


class TestFiles:
    @pytest.mark.parametrize(
        "change",
        [{}, {"x_T": None}, {"converged": (True, False, True)},
         {"residual_T": torch.randn(3, 3, 16, 16)}],
    )  # fmt: skip
    def test_round_trip(self, change: dict[str, object]) -> None:
        codes = codes_of(3, **change)
        back = from_bytes(to_bytes(codes), "it")
        assert back.tensors().keys() == codes.tensors().keys()
        for name, part in codes.tensors().items():
            assert torch.equal(back.tensors()[name], part)
        plain = {"z": None, "x_T": None, "residual_T": None}
        assert replace(back, **plain) == replace(codes, **plain)  # type: ignore[arg-type]
        assert to_bytes(stack(rows(codes))) == to_bytes(codes)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"sources": (), "picture_shas": ()}, "aren't lists of 2"),
            ({"z": torch.zeros(0, 6), "x_T": None, "sources": (), "picture_shas": ()}, "any row"),
            ({"sources": ("a.png",)}, "aren't lists of 2"),
            ({"picture_shas": ("a.png", "b.png")}, "'a.png' is no SHA-256"),
        ],
    )
    def test_rows_without_names_are_not_kept(self, change: dict[str, object], words: str) -> None:
        """Nobody could read them: codes by hand."""
        pytest.importorskip("pyarrow")
        for keep in (to_bytes, one_file, to_table):
            with pytest.raises(UsageError, match=f"a picture_sha for each row: .*{words}"):
                keep(codes_of(2, **change))

    def test_names_of_many_rows_may_be_longer_than_their_numbers(self) -> None:
        count = 60_000
        names = tuple(f"photos/{row}.png" for row in range(count))
        many = codes_of(1, x_T=None, z=torch.randn(count, 6), sources=names)
        many = replace(many, picture_shas=tuple(f"{row:064x}" for row in range(count)))
        data = one_file(many, {"sources": [{"name": name, "sha256": "0" * 64} for name in names]})
        assert len(data) > 9 * many.z.nbytes and from_bytes(data, "it").sources == names

    def test_what_couldnt_be_read_again_isnt_written(self) -> None:
        names = tuple("a,b" * 1000 for _ in range(2000))
        many = codes_of(1, x_T=None, z=torch.randn(2000, 6), sources=names)
        many = replace(many, picture_shas=tuple(f"{row:064x}" for row in range(2000)))
        with pytest.raises(InputError, match="too large"):
            from_bytes(to_bytes(many), "it")
        with pytest.raises(UsageError, match="codes of 2,000 pictures are more than can be read"):
            one_file(many)


class TestSums:
    def test_one_term_is_itself(self) -> None:
        codes = codes_of(3)
        for noise in ("sphere", "plain", "first"):
            same = combine([(1.0, codes)], noise)
            assert torch.equal(same.z, codes.z) and torch.equal(noise_of(same), noise_of(codes))
            assert (same.sources, same.picture_shas) == (codes.sources, codes.picture_shas)

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

    def test_a_difference_is_a_direction_and_an_edit_keeps_its_pictures_x_T(self) -> None:
        face, many, few = codes_of(3), codes_of(1, seed=1), codes_of(1, seed=2)
        direction = combine([(1, many), (-1, few)])
        assert direction.x_T is None
        edited = combine([(1, face), (0.3, direction)])
        assert torch.equal(noise_of(edited), noise_of(face))
        assert edited.picture_shas == face.picture_shas
        at_once = combine([(1, face), (0.3, many), (-0.3, few)], "first")
        assert torch.allclose(at_once.z, edited.z, atol=1e-6)
        assert torch.equal(noise_of(at_once), noise_of(face))

    def test_one_row_goes_with_all(self) -> None:
        many, one = codes_of(3), codes_of(1, seed=1)
        summed = combine([(2, one), (1, many)])
        assert torch.allclose(summed.z, 2 * one.z + many.z, atol=1e-6)
        assert len(summed) == 3 and summed.picture_shas == many.picture_shas
        assert noise_of(combine([(2, one), (1, many)], "first")).shape == noise_of(many).shape
        z_alone = codes_of(3, x_T=None, sampling={})
        assert combine([(1, z_alone), (1, one)]).sampling == one.sampling  # it is x_T's
        with pytest.raises(InputError, match="of 2 and 3 pictures"):
            combine([(1, codes_of(2)), (1, many)])

    @pytest.mark.parametrize("noise", NOISES)
    def test_sums_are_codes_files(self, noise: str) -> None:
        terms = [(0.5, codes_of(2)), (-1e30, codes_of(1, seed=1))]
        back = from_bytes(to_bytes(combine(terms, noise)), "sum")
        assert len(back) == 2 and (back.x_T is None) == (noise == "none")
        long = combine([(0.1, codes_of(1, sources=("x" * 800,))) for _ in range(50)], noise)
        assert len(from_bytes(to_bytes(long), "long")) == 1

    @pytest.mark.parametrize("noise", NOISES)
    def test_residual_T_goes_with_x_T(self, noise: str) -> None:
        """As if x_T + residual_T was summed with x_T's own weights; with a direction, as in an
        edit, it stays."""
        residual_T = torch.randn(2, 3, 16, 16)
        a, b = codes_of(2, residual_T=residual_T), codes_of(1, seed=1)
        summed = combine([(0.5, a), (0.25, b)], noise)
        if noise == "none":
            assert summed.residual_T is None
            return
        plain = 0.5 * noise_of(a) + 0.25 * noise_of(b)
        scale = 1.0 if noise == "first" else 0.5 * noise_of(summed) / plain
        assert summed.residual_T is not None
        assert torch.allclose(summed.residual_T, scale * residual_T, rtol=1e-4, atol=1e-6)
        direction = codes_of(1, seed=2, x_T=None, sampling={})
        kept = combine([(1, a), (0.3, direction)], noise).residual_T
        assert kept is not None and torch.equal(kept, residual_T)
        one = codes_of(1, residual_T=residual_T[:1])
        to_all = combine([(1, one), (1, codes_of(2, seed=1))], "first").residual_T
        assert to_all is not None and torch.equal(to_all, residual_T[:1].expand(2, -1, -1, -1))

    @pytest.mark.parametrize("noise", ["sphere", "plain"])
    def test_a_sum_that_overflows_is_refused(self, noise: str) -> None:
        with pytest.raises(InputError, match="too large"):
            combine([(1e39, codes_of(1))], noise)
        with pytest.raises(InputError, match="too large"):
            combine([(1e39, codes_of(1, z=torch.zeros(1, 6)))], "plain")


def test_codes_join_whether_they_have_residual_T_or_not() -> None:
    """None is the same as 0: means and fresh noise have none."""
    residual_T = torch.randn(1, 3, 16, 16)
    joined = stack([codes_of(1, seed=1), codes_of(1, residual_T=residual_T)])
    assert joined.residual_T is not None
    assert torch.equal(joined.residual_T, torch.cat([torch.zeros_like(residual_T), residual_T]))
    with pytest.raises(InputError, match="have x_T"):
        stack([codes_of(1), codes_of(1, x_T=None)])


def test_between_two_residual_T_is_linear() -> None:
    ends = codes_of(2, residual_T=torch.randn(2, 3, 16, 16))
    way = between(ends, [0.0, 0.25, 1.0])
    assert ends.residual_T is not None and way.residual_T is not None
    a, b = ends.residual_T
    expected = torch.stack([a, 0.75 * a + 0.25 * b, b])
    assert torch.allclose(way.residual_T, expected, atol=1e-6)
    assert between(codes_of(2), [0.5]).residual_T is None
    kept = from_bytes(to_bytes(way), "way")  # each with random numbers of its own
    assert kept.sources == ("0 %", "25 %", "100 %") and len({*kept.picture_shas}) == 3
    assert not {*kept.picture_shas} & {*between(codes_of(2, seed=7), [0.0, 0.25]).picture_shas}


class TestMean:
    def test_of_z_and_of_noise(self) -> None:
        codes = codes_of(16, size=64)
        one = mean(codes)
        assert torch.allclose(one.z, codes.z.mean(0, keepdim=True), atol=1e-6)
        assert noise_of(one).std().item() == pytest.approx(0.25, abs=0.01)
        assert noise_of(mean(codes, "sphere")).std().item() == pytest.approx(1, abs=0.02)
        assert torch.equal(noise_of(mean(codes, "first")), noise_of(codes)[:1])
        assert one.sources == ("mean of 16",)
        again = mean(one)
        assert torch.equal(again.z, one.z) and again.sources == one.sources

    @pytest.mark.parametrize("noise", ["plain", "sphere", "none"])
    def test_order_doesnt_matter(self, noise: str) -> None:
        parts = rows(codes_of(7))
        expected = to_bytes(mean(stack(parts), noise))
        for seed in range(5):
            random.Random(seed).shuffle(parts)
            assert to_bytes(mean(stack(parts), noise)) == expected


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
        monkeypatch.setattr("pdae_cli.engine.codes.CHUNK", 45)
        for part, expected in zip(nearest(query, library, 4), whole, strict=True):
            assert torch.equal(part, expected)

    def test_unknown_metrics_and_noise_are_named(self) -> None:
        with pytest.raises(UsageError, match="euclidean"):
            nearest(torch.ones(1, 2), torch.ones(1, 2), 1, "manhattan")
        with pytest.raises(UsageError, match="sphere"):
            combine([(1, codes_of(1))], "loud")


ELSE: dict[str, object] = {"weights_sha": "e" * 64, "model": "other"}


class TestRefusals:
    OTHERS = (
        (ELSE, "other, weights eeeeeeeeeeee.*tiny, weights ddd"),
        ({"z": torch.randn(1, 7)}, "z of size 7.*z of size 6"),
        ({"x_T": torch.randn(1, 3, 4, 4)}, "x_T of size"),
        ({"sampling": {"inference_steps": 6}}, r"\(inference_steps 6\).*\(inference_steps 5\)"),
    )

    @pytest.mark.parametrize(("change", "message"), OTHERS)
    def test_unlike_codes_dont_go_together(self, change: dict[str, object], message: str) -> None:
        pair = [codes_of(1), codes_of(1, seed=1, **change)]
        with pytest.raises(InputError, match=f"b.safetensors.*{message}"):
            stack(pair, ["a.safetensors", "b.safetensors"])
        with pytest.raises(InputError, match=message):
            combine([(0.5, one) for one in pair])

    def test_the_odd_one_is_found_behind_one_that_doesnt_say(self) -> None:
        three = codes_of(1, weights_sha="", x_T=None), codes_of(1), codes_of(1, **ELSE)
        for order in itertools.permutations(three):
            with pytest.raises(InputError, match="don't go together"):
                combine([(1, one) for one in order])

    def test_a_sum_is_of_one_precision_or_doesnt_say_it(self) -> None:
        """Decoding it would tell of the wrong one."""
        low, high = (codes_of(1, dtype=dtype) for dtype in ("bfloat16", "float32"))
        for terms, dtype in ((low, low), "bfloat16"), ((low, high), ""), ((high, low), ""):
            assert combine([(0.5, one) for one in terms]).dtype == stack(terms).dtype == dtype

    def test_what_doesnt_matter(self) -> None:
        """The model's name, and without x_T how that was made; but all have one, or none."""
        pair = [codes_of(1, x_T=None), codes_of(1, x_T=None, sampling=Sampling().__dict__)]
        assert combine([(0.5, one) for one in pair]).x_T is None
        assert len(stack([codes_of(1), codes_of(1, model="copy")])) == 2
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

    def test_numpy_reads_npy_and_npz(self) -> None:
        codes = self.hostile()
        z = np.load(io.BytesIO(to_npy(codes)), allow_pickle=False)
        assert z.dtype == np.float32 and np.array_equal(z, codes.z.numpy())
        assert to_npz(codes) == to_npz(self.hostile())
        archive = np.load(io.BytesIO(to_npz(codes)), allow_pickle=False)
        assert set(archive) == {"z", "x_T", "sources"}
        assert np.array_equal(archive["x_T"], noise_of(codes).numpy())
        assert tuple(archive["sources"]) == codes.sources
        alone = np.load(io.BytesIO(to_npz(replace(codes, x_T=None))), allow_pickle=False)
        assert set(alone) == {"z", "sources"}
