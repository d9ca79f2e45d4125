"""What a caller from Python hands to a model: what can't be meant is one line, not torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model

import pdae_cli
from pdae_cli.engine.attributes import Scale
from pdae_cli.engine.codes import Codes
from pdae_cli.engine.editing import decode_within, inpaint
from pdae_cli.engine.model import Model
from pdae_cli.errors import InputError, UsageError

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
T = torch.tensor([3, 4])
HOLE = torch.ones(1, 1, 32, 32)
Call = Callable[[Any, Any], object]  # of a model and codes of two pictures


@pytest.fixture(scope="module")
def whole() -> tuple[Model, Codes]:
    model = tiny_model()
    return model, model.encode(X, inference_steps=2)


PICTURES: dict[str, tuple[Call, str]] = {
    "an array": (lambda m, c: m.encode(X.numpy()), "not ndarray; of arrays torch.from_numpy"),
    "arrays": (lambda m, c: m.encode([np.zeros((32, 32, 3), np.uint8)]), "Image.fromarray"),
    "an array's z": (lambda m, c: m.z_of(X.numpy()), "not ndarray"),
    "tensors": (lambda m, c: m.encode([*X]), "torch.stack joins several"),
    "one without a batch": (lambda m, c: m.encode(X[0]), r"takes \(N, 3, 32, 32\)"),
    "of 0 to 255": (lambda m, c: m.encode(X * 127.5 + 127.5), r"in \[-1, 1\], not of 25"),
    "of 0 to 255, for z": (lambda m, c: m.z_of(X * 127.5 + 127.5), r"in \[-1, 1\], not of 25"),
    "of 0 to 255, to fill": (lambda m, c: inpaint(m, X * 127.5 + 127.5, 0 * HOLE), "not of 25"),
    "of NaN": (lambda m, c: m.encode(X * torch.nan), r"in \[-1, 1\], not of nan"),
    "nothing": (lambda m, c: m.encode(None), "not NoneType"),
    "codes": (lambda m, c: m.encode(c), "not Codes"),
    "bytes": (lambda m, c: m.encode(b"\x89PNG"), "not bytes"),
    "z of an array": (lambda m, c: m.encode_z(X.numpy()), "a tensor here, not ndarray"),
    "z without a batch": (lambda m, c: m.encode_z(X[0]), r"takes \(N, 3, 32, 32\)"),
    "z of a size": (lambda m, c: m.encode_z(torch.zeros(1, 3, 64, 64)), r"takes \(N, 3, 32, 32\)"),
    "z of bytes": (lambda m, c: m.encode_z(X.byte()), "not uint8; .*to_float"),
}
OTHERS: dict[str, tuple[Call, str]] = {
    "steps": (lambda m, c: m.encode(X, inference_steps="2"), "must be a whole number, not '2'"),
    "half a step": (lambda m, c: m.encode(X, inference_steps=2.5), "a whole number, not 2.5"),
    "guidance": (lambda m, c: m.encode(X, guidance="1"), "guidance must be a number, not '1'"),
    "a number of steps": (
        lambda m, c: m.encode(X, 20),
        "by name, .*Sampling, not 20",
    ),
    "a dict of settings": (lambda m, c: m.decode(c, {"solver": "ddim"}), "by name, .*Sampling"),
    "settings to fill": (lambda m, c: inpaint(m, X, HOLE, c.z, 20), "by name, .* not 20"),
    "pictures": (lambda m, c: m.decode(X), r"not Tensor \(2, 3, 32, 32\)"),
    "z": (lambda m, c: m.decode(c.z), r"what Model.encode returns, not Tensor \(2, 6\)"),
    "no codes": (lambda m, c: m.decode(None), "not NoneType"),
    "z of an array": (lambda m, c: m.decode(replace(c, z=c.z.numpy())), "z a ndarray"),
    "fewer x_T": (lambda m, c: m.decode(replace(c, x_T=c.x_T[:1])), r"x_T a Tensor \(1, 3"),
    "one z": (lambda m, c: m.decode(replace(c, z=c.z[0])), r"z a Tensor \(6,\)"),
    "generators": (lambda m, c: m.decode(c, generators=[torch.Generator()]), "2 pictures take a"),
    "a dict": (lambda m, c: m.manipulate(c, {"smiling": 1}), "pairs .* not {'smiling': 1}"),
    "one pair": (lambda m, c: m.manipulate(c, ("smiling", 1)), "a list of pairs"),
    "names": (lambda m, c: m.manipulate(c, ["smiling"]), "a list of pairs"),
    "a name": (lambda m, c: m.manipulate(c, "smiling"), "a list of pairs"),
    "a unit": (lambda m, c: m.manipulate(c, [("smiling", "1sd")]), "attributes.Scale"),
    "a number": (lambda m, c: m.manipulate(c, [(3, 1.0)]), "a list of pairs"),
    "keep": (lambda m, c: m.manipulate(c, [("smiling", 1)], keep="hat"), r"a list .*\['hat'\]"),
    "edited pictures": (lambda m, c: m.manipulate(X, [("smiling", 1)]), "what Model.encode"),
    "a list of codes": (lambda m, c: m.interpolate([c[:1], c[1:]], 3), "not list"),
    "half a picture": (lambda m, c: m.interpolate(c, 2.5), "whole number, .* not 2.5"),
    "a text": (lambda m, c: m.interpolate(c, "3"), "whole number, .* not '3'"),
    "a share": (lambda m, c: m.interpolate(c, [0.5, 2]), "from 0 to 1, not 2"),
    "t of floats": (lambda m, c: m.predict(X, T.float(), c.z), "of whole numbers"),
    "t a number": (lambda m, c: m.predict(X, 3, c.z), "of whole numbers, N = 2, not int"),
    "t of none": (lambda m, c: m.predict(X, torch.tensor(3), c.z), r"not Tensor \(\)"),
    "t of others": (lambda m, c: m.predict(X, torch.zeros(3).long(), c.z), r"not Tensor \(3,\)"),
    "x_t": (lambda m, c: m.predict(X[0], T, c.z), r"x_t is a tensor \(N, 3, H, W\)"),
    "x_t an array": (lambda m, c: m.predict(X.numpy(), T, c.z), "x_t .* not ndarray"),
    "another z": (lambda m, c: m.predict(X, T, c.z[:, :5]), r"z is a tensor \(N, 6\)"),
    "more z": (lambda m, c: m.predict(X, T, torch.zeros(3, 6)), r"N = 2, not Tensor \(3, 6\)"),
    "z of one": (
        lambda m, c: m.predict(X, T, c.z[0]),
        r"z is a tensor \(N, D\).*not Tensor \(6,\)",
    ),
    "z in a list": (lambda m, c: m.predict(X, T, c.z[None]), r"not Tensor \(1, 2, 6\)"),
    "x_t of pixels": (lambda m, c: m.predict(X.byte(), T, c.z), "of floats, .* of uint8"),
    "no x_t": (lambda m, c: m.predict(X[:0], T[:0], c.z[:0]), r"not Tensor \(0, 3, 32, 32\)"),
    "a flat mask": (lambda m, c: inpaint(m, X, HOLE[0, 0]), r"\(N or 1, 1, 32, 32\), N = 2"),
    "a coloured mask": (lambda m, c: decode_within(m, c, c, X), r"not Tensor \(2, 3, 32, 32\)"),
    "fewer masks": (
        lambda m, c: inpaint(m, X.repeat(2, 1, 1, 1), HOLE.repeat(2, 1, 1, 1)),
        "N = 4",
    ),
    "fewer edited": (lambda m, c: decode_within(m, c, c[:1], HOLE), "2 pictures take a row of z"),
    "fewer z": (
        lambda m, c: inpaint(m, X, HOLE, c.z[:1]),
        "2 pictures take a row of z each, not 1",
    ),
    "fewer draws": (
        lambda m, c: inpaint(m, X, HOLE, generators=[torch.Generator()]),
        "a generator",
    ),
    "no device": (lambda m, c: m.to(None), "device None can't be used"),
    "z as codes": (lambda m, c: m.predict(X, T, c), "z is a tensor .* not Codes"),
    "samples": (lambda m, c: m.sample(2.0), "a whole number, or a list of them, not 2.0"),
    "samples' number": (lambda m, c: m.sample("2"), "not '2'"),
    "scores": (lambda m, c: m.scores(c.z), "what Model.encode returns"),
    "statistics": (lambda m, c: m.normalise(c.z[:, :5]), r"z is a tensor \(N, 6\)"),
    "no statistics": (lambda m, c: m.denormalise(c.z.numpy()), "not ndarray"),
    "a row": (lambda m, c: c[0], r"by a slice: codes\[0:0 \+ 1\]"),
    "a table": (lambda m, c: pdae_cli.to_table(c.z), "what Model.encode returns"),
}


@pytest.mark.parametrize("what", PICTURES)
def test_pictures_that_are_none(whole: tuple[Model, Codes], what: str) -> None:
    call, said = PICTURES[what]
    with pytest.raises(InputError, match=said) as error:
        call(*whole)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", OTHERS)
def test_other_arguments(whole: tuple[Model, Codes], what: str) -> None:
    call, said = OTHERS[what]
    with pytest.raises(UsageError, match=said) as error:
        call(*whole)
    assert "\n" not in str(error.value)


def test_numbers_of_any_kind_are_taken(whole: tuple[Model, Codes]) -> None:
    model, codes = whole
    for scale in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), Scale(0.5), 0.5):
        moved = model.manipulate(codes, [("smiling", scale)])  # type: ignore[list-item]
        assert torch.equal(moved.z, model.manipulate(codes, [("smiling", 0.5)]).z)
    first = model.sample(1, inference_steps=2)[0]
    for count in (np.int64(1), [0], np.array([0]), range(1)):
        assert torch.equal(model.sample(count, inference_steps=2)[0], first)  # type: ignore[arg-type]
    ends = model.interpolate(codes, 2)
    assert torch.equal(model.interpolate(codes, np.array([0.0, 1.0])), ends)  # type: ignore[arg-type]
    eps, _ = model.predict(X, torch.tensor([3]), codes.z)  # one t for all
    torch.testing.assert_close(eps, model.predict(X, torch.tensor([3, 3]), codes.z)[0])
    noisy = model.z_of(4 * torch.randn(2, 3, 32, 32).clamp(-1.9, 1.9))  # as metrics may ask
    assert noisy.shape == (2, 6)


def test_tensors_of_any_precision_are_taken(whole: tuple[Model, Codes]) -> None:
    """What NumPy or a GPU made, a z that is being optimised: held and computed as float32."""
    model, codes = whole
    assert codes.x_T is not None
    pictures, scores = model.decode(codes), model.scores(codes)
    for kind in (torch.float64, torch.float32):
        z, x_T = (one.to(kind).clone().requires_grad_() for one in (codes.z, codes.x_T))
        own = replace(codes, z=z, x_T=x_T)
        assert torch.equal(model.decode(own), pictures)
        assert torch.equal(model.scores(own), scores)
        assert Codes(z, x_T).names() == Codes(codes.z, codes.x_T).names()
        moved = model.manipulate(own, [("smiling", 0.5)])
        assert torch.equal(moved.z, model.manipulate(codes, [("smiling", 0.5)]).z)
        found = model.predict(X.to(kind), T.to(torch.uint8), z)
        for one, plain in zip(found, model.predict(X, T, codes.z), strict=True):
            assert one is not None and plain is not None and torch.equal(one, plain)
    for kind in (torch.float16, torch.bfloat16):
        rounded = replace(codes, z=codes.z.to(kind))
        assert torch.equal(model.decode(rounded), model.decode(replace(codes, z=rounded.z)))


def test_z_is_normalised_where_it_is(whole: tuple[Model, Codes]) -> None:
    """`encode_z` leaves z on the model's device; the meta device stands in for a GPU."""
    model, codes = whole
    there = model.denormalise(model.normalise(codes.z.to("meta")))
    assert there.device.type == "meta" and there.shape == codes.z.shape


def test_a_device_that_isnt_here_leaves_the_model_as_it_was(whole: tuple[Model, Codes]) -> None:
    model, codes = whole
    before = model.decode(codes)
    for there, dtype in (("maia", "bfloat16"), ("cpu", "float16")):
        with pytest.raises(UsageError, match=r"can't be used|too slow"):
            model.to(there, dtype)
        assert (model.device.type, model.dtype) == ("cpu", "float32")
        assert torch.equal(model.decode(codes), before)


def test_scores_are_of_the_models_own_codes(whole: tuple[Model, Codes]) -> None:
    model = replace(whole[0], weights_sha="1" * 64)
    with pytest.raises(InputError, match="of another model"):
        model.scores(replace(whole[1], weights_sha="2" * 64))


def test_a_loop_over_codes_isnt_over_at_once(whole: tuple[Model, Codes]) -> None:
    with pytest.raises(UsageError, match="by a slice"):
        list(whole[1])  # type: ignore[call-overload]
