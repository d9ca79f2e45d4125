"""Foreign pickles: what comes out of them, and that nothing in them is ever run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pdae_cli.checkpoints import pickles
from pdae_cli.checkpoints.pickles import DROPPED, LIGHTNING_KEY, TENSORS, read_pickle
from pdae_cli.errors import ModelError

LEGACY = {"_use_new_zipfile_serialization": False}
BOTH = pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])


class Call:
    """Pickles as a call of `function`, which plain unpickling would make."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go: nothing may be left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def refusal(path: Path, then: str = " ") -> str:
    """The message of the ModelError that reading `path` raises: one line that names the file."""
    with pytest.raises(ModelError) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert message.startswith(f"{path}{then}") and len(message) < len(str(path)) + 400
    assert message.isprintable() and "Traceback" not in message
    assert not any(Path(tempfile.gettempdir()).iterdir())
    return message


def assert_same(found: Any, wanted: Any) -> None:
    """Tensors bit for bit, containers and scalars with their types."""
    if isinstance(wanted, torch.Tensor):
        assert type(found) is torch.Tensor and found.dtype == wanted.dtype
        assert found.shape == wanted.shape and torch.equal(found, wanted)
        assert found.is_contiguous() and not found.requires_grad
    elif isinstance(wanted, dict):
        assert list(found) == [str(key) for key in wanted]
        for key, value in wanted.items():
            assert_same(found[str(key)], value)
    elif isinstance(wanted, (list, tuple)):
        assert type(found) is list and len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            assert_same(ours, theirs)
    else:
        assert type(found) is type(wanted) and (found == wanted or found != found)


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("unpickled in the parent")


class TestContent:
    @BOTH
    def test_round_trip_without_unpickling_here(
        self,
        options: dict[str, Any],
        tmp_path: Path,
        temporary: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        dtypes = [torch.bfloat16, torch.float16, torch.int64, torch.int16, torch.uint8, torch.bool]
        if options != LEGACY:
            dtypes += [torch.float8_e4m3fn, torch.uint32]  # newer than the legacy format
        base = torch.randn(4, 6)
        content = {
            "state": OrderedDict(
                weight=torch.nn.Parameter(base),  # shares memory with the next three
                part=base[1:3, ::2],
                transposed=base.t(),
                tied=base,
                scalar=torch.tensor(3.5, dtype=torch.float64),
                empty=torch.zeros(0, 3),
                conjugate=torch.tensor([1 + 2j]).conj(),
            ),
            "types": [torch.tensor([0, 1, 3]).to(dtype) for dtype in dtypes],
            "plain": [None, True, 7, -(2**70), 0.1, float("nan"), "päth/\ud800\n", (1, (2, []))],
            "tensor": {"dict": {"tensor": 1}, 5: "number"},  # the words of the answer's own format
            "refused": "not at all",
            "shape": torch.Size([2, 3]),
            "optimizer_states": [{1, 2}],
        }
        path = tmp_path / "it.ckpt"
        torch.save(content, path, **options)
        for function in ("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"):
            monkeypatch.setattr(function, forbidden)
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        monkeypatch.chdir(tmp_path)
        found = read_pickle(Path("it.ckpt"))
        assert list(temporary.iterdir()) == []
        del content["optimizer_states"]
        assert_same(found, content)
        if sys.platform == "linux":
            assert TENSORS not in Path("/proc/self/maps").read_text()
        pointers = {t.untyped_storage().data_ptr() for t in found["state"].values() if t.numel()}
        assert len(pointers) == 6

    def test_lightning_names_a_class(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Version 1.4.5 has the class as a key among the callbacks; here it isn't installed."""
        module, _, name = LIGHTNING_KEY.rpartition(".")
        for part in ("pytorch_lightning", "pytorch_lightning.callbacks", module):
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        stands = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, stands)
        content = {"callbacks": {stands: {"best": None}}, "state_dict": {"w": torch.ones(2)}}
        content |= {key: {"x": torch.zeros(2), "y": torch.float32} for key in DROPPED - {*content}}
        torch.save(content, tmp_path / "it.ckpt")
        assert_same(read_pickle(tmp_path / "it.ckpt"), {"state_dict": {"w": torch.ones(2)}})
        torch.save({"kept": content["callbacks"]}, tmp_path / "kept.ckpt")
        with pytest.raises(ModelError, match="type as a key, or one twice, at kept"):
            read_pickle(tmp_path / "kept.ckpt")
        torch.save({"a": stands()}, tmp_path / "instance.ckpt")
        assert LIGHTNING_KEY in refusal(tmp_path / "instance.ckpt")

    def test_a_lightning_checkpoint(self, shared: Path) -> None:
        golden = shared / "golden" / "diffae_autoenc64" / "checkpoints"
        path = golden / "tiny64_autoenc_latent" / "last.ckpt"
        found = read_pickle(path)
        assert found["pytorch-lightning_version"] == "1.4.5" and not DROPPED & found.keys()
        with torch.serialization.safe_globals([(Call, LIGHTNING_KEY)]):  # any class will do
            assert_same(found, {k: v for k, v in _loaded(path).items() if k not in DROPPED})


def _loaded(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


class TestHostile:
    """Each payload would make the file `marker`, were it run."""

    @pytest.fixture
    def marker(self, tmp_path: Path) -> Path:
        return tmp_path / "marker"

    def test_the_payloads_would_work(self, marker: Path) -> None:
        """Without this the tests below could pass for the wrong reason."""
        pickle.loads(pickle.dumps(Call(os.system, f"touch {marker}"), 0))
        assert marker.exists()

    @pytest.mark.parametrize(("options", "key"), [({}, "x"), (LEGACY, "x"), ({}, "optimizer")])
    def test_a_system_call(
        self, options: dict[str, Any], key: str, tmp_path: Path, marker: Path
    ) -> None:
        """Nor is a key that is dropped a way in."""
        content = {"state_dict": {"w": torch.ones(2)}, key: Call(os.system, f"touch {marker}")}
        torch.save(content, tmp_path / "it.pt", **options)
        message = refusal(tmp_path / "it.pt")
        assert f"{os.name}.system" in message and "was not run" in message
        assert not marker.exists()

    # The rest in this process, where the same function refuses them without the 2 s of a child.

    def test_a_bare_pickle(self, tmp_path: Path, marker: Path) -> None:
        for protocol in (0, 2, 4):
            data = pickle.dumps({"a": Call(os.system, f"touch {marker}")}, protocol)
            (tmp_path / "it.pkl").write_bytes(data)
            with pytest.raises(pickles._Refusal, match="nothing in it was run"):
                pickles._unpack(tmp_path / "it.pkl", len(data))
            assert not marker.exists()

    @pytest.mark.parametrize("options", [{}, LEGACY, {"pickle_protocol": 4}])
    @pytest.mark.parametrize(
        ("function", "argument", "name"),
        [
            (builtins.exec, "open({!r}, 'w')", "builtins.exec"),
            (builtins.eval, "open({!r}, 'w')", "builtins.eval"),
            (subprocess.Popen, "touch {}", "Popen"),
            (os.system, "touch {}", "system"),
            (torch.load, "{}", "torch.serialization.load"),
            (torch.hub.load, "{}", "torch.hub.load"),
            (torch.save, "{}", "torch.serialization.save"),
            (getattr, "{}", "builtins.getattr"),
            (torch.utils.collect_env.run, "touch {}", "torch.utils.collect_env.run"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_functions_are_named_not_called(
        self,
        function: Callable[..., Any],
        argument: str,
        name: str,
        options: dict[str, Any],
        tmp_path: Path,
        marker: Path,
    ) -> None:
        call = Call(function, argument.format(str(marker)))
        for content in ({"a": {"b": [1, ({"c": call},)]}}, {"k": {call: 1}}, {"callbacks": call}):
            torch.save(content, tmp_path / "it.pt", **options)
            with pytest.raises(pickles._Refusal) as caught:
                pickles._unpack(tmp_path / "it.pt", 1000)
            expected = "Unsupported operand" if "pickle_protocol" in options else f"{name}, "
            assert expected in str(caught.value) and not marker.exists()

    def test_records_written_by_hand(self, tmp_path: Path, marker: Path) -> None:
        """A zip whose data.pkl is a bare pickle, and names that would spoil a terminal."""
        torch.save({}, tmp_path / "plain.pt")
        for text, name in (
            (f"cposix\nsystem\n(Vtouch {marker}\ntR.", "posix.system"),
            ("c\x1b[2J\rtorch\nload\n.", "[2J torch.load"),
            (f"c{'x' * 4000}\ny\n.", "xxx…"),
        ):
            with_record(tmp_path / "plain.pt", tmp_path / "it.pt", "data.pkl", text.encode())
            with pytest.raises(pickles._Refusal, match="asks for") as caught:
                pickles._unpack(tmp_path / "it.pt", 1000)
            assert name in str(caught.value) and str(caught.value).isprintable()
            assert not marker.exists() and len(str(caught.value)) < 300


def with_record(source: Path, target: Path, record: str, data: bytes | None) -> None:
    """A copy of a zip file with other content in the one record, or without it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if not name.endswith(f"/{record}"):
                new.writestr(name, old.read(name))
            elif data is not None:
                new.writestr(name, data)


def claiming(stored: int, size: int) -> bytes:
    """A legacy file with 16 bytes of numbers that says they are `stored`, seen as `size`."""

    def number(n: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", n)

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu%bNtQ"
    tensor = b"(" + storage % number(stored) + b"K\0%b\x85K\1\x85\x89}t" % number(size)
    content = b"\x80\2}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n%bRs." % tensor
    parts: list[Any] = [0x1950A86A20F9469CFC6C, 1001, {}]  # magic number, version, system
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    return head + content + pickle.dumps(["0"], 2) + struct.pack("<q", stored) + bytes(16)


class TestLimits:
    """A small file must not cost much memory or time, whatever it claims."""

    def test_the_file_made_by_hand_is_one(self, tmp_path: Path) -> None:
        (tmp_path / "it.pt").write_bytes(claiming(4, 4))
        assert_same(_loaded(tmp_path / "it.pt"), {"a": torch.zeros(4)})

    @pytest.mark.parametrize("stored", [10**11, 4])
    def test_more_memory_than_the_file_explains(self, stored: int, tmp_path: Path) -> None:
        (tmp_path / "it.pt").write_bytes(claiming(stored, 10**11))
        message = refusal(tmp_path / "it.pt")
        if sys.platform == "linux":
            assert "needs more memory" in message

    def test_a_compressed_bomb(self, tmp_path: Path) -> None:
        """1 GB in 5 MB: the record is refused before anything is unpacked."""
        torch.save({"w": torch.zeros(1)}, tmp_path / "small.pt")
        with_record(tmp_path / "small.pt", tmp_path / "it.pt", "data/0", None)
        info = zipfile.ZipInfo("small/data/0")
        info.compress_type = zipfile.ZIP_DEFLATED
        with (
            zipfile.ZipFile(tmp_path / "it.pt", "a", compresslevel=1) as new,
            new.open(info, "w", force_zip64=True) as record,
        ):
            for _ in range(1000):
                record.write(bytes(1 << 20))
        assert "compressed records (small/data/0)" in refusal(tmp_path / "it.pt")

    @BOTH
    def test_expanded_tensors(self, options: dict[str, Any], tmp_path: Path) -> None:
        content = {"a": torch.zeros(3), "b": {"c": [torch.zeros(1).expand(10**6, 10**6)]}}
        torch.save(content, tmp_path / "it.pt", **options)
        message = refusal(tmp_path / "it.pt")
        assert "claims larger tensors, at b.c[0]," in message

    def test_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.save({"a": torch.zeros(3)}, tmp_path / "it.pt")
        monkeypatch.setattr(pickles, "TIMEOUT_S", 0.01)
        assert "was not read within 0 s" in refusal(tmp_path / "it.pt")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"a": torch.float32}, "holds a dtype at a,"),
            ({"a": [{"b": b"x"}]}, r"holds a bytes at a\[0\].b,"),
            ({"a": {1, 2}}, "holds a set at a,"),
            ({"a": torch.eye(2).to_sparse()}, "torch.sparse_coo"),
            ({"a": torch.zeros(2, device="meta")}, "meta"),
            ({"a": torch.zeros(2, dtype=torch.complex128)}, "complex128"),
            ({"a": {1: 2, "1": 3}}, "one twice, at a"),
            ({(1, 2): 3}, "a tuple as a key, or one twice, at its top level"),
            ({"a": {"x" * 10**6: {1: torch.device("cpu")}}}, "xxx…, which"),
            ({"a": 10**5000}, "damaged"),
            ([1, 2], "holds a list"),
            (torch.zeros(2), "holds a Tensor"),
        ],
    )
    def test_what_is_not_plain_is_named(self, content: Any, message: str, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "it.pt")
        with pytest.raises(pickles._Refusal, match=message) as caught:
            pickles._unpack(tmp_path / "it.pt", 1000)
        assert len(str(caught.value)) < 300 and str(caught.value).isprintable()

    def test_containers_that_hold_one_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Small pickles, by references, of sizes that no memory has room for."""
        monkeypatch.setattr(pickles, "MAX_STRUCTURE", 1 << 20)
        cycle: dict[str, Any] = {}
        cycle["a"] = cycle
        doubled: list[Any] = []
        for _ in range(50):
            doubled = [doubled, doubled]
        for content, message in ((cycle, "nests deeper"), (doubled, "holds more than")):
            with pytest.raises(pickles._Refusal, match=message):
                pickles._Flattener(1000).flat(content, "", 0)


class TestDamage:
    @pytest.mark.parametrize("part", [0.01, 0.1, 0.3, 0.6, 0.9, 0.99])
    @BOTH
    def test_cut_anywhere(self, part: float, options: dict[str, Any], tmp_path: Path) -> None:
        file = io.BytesIO()
        torch.save({"a": torch.randn(100), "b": ["x" * 1000]}, file, **options)
        data = file.getvalue()
        (tmp_path / "it.pt").write_bytes(data[: int(len(data) * part)])
        # "asks for": a name that is itself cut is an unknown one.
        expected = r"is damaged, cut short|is not a file that|asks for [\w.]*,"
        with pytest.raises(pickles._Refusal, match=expected):
            pickles._unpack(tmp_path / "it.pt", len(data))

    @pytest.mark.parametrize(
        "data",
        [b"", b"just some text\n" * 20, b"cat\ndog\n", bytes(99), pickle.dumps({"a": 1}, 2)],
        ids=["empty", "text", "text like a pickle", "zeros", "pickle"],
    )
    def test_other_files(self, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "it.pt").write_bytes(data)
        with pytest.raises(pickles._Refusal, match=r"is not a file that torch\.save wrote"):
            pickles._unpack(tmp_path / "it.pt", len(data))

    def test_a_torchscript_program(self, tmp_path: Path) -> None:
        torch.save({}, tmp_path / "it.pt")
        with zipfile.ZipFile(tmp_path / "it.pt", "a") as archive:
            archive.writestr("it/constants.pkl", b"")
        with pytest.raises(pickles._Refusal, match="TorchScript"):
            pickles._unpack(tmp_path / "it.pt", 1000)

    def test_no_file_and_no_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "no such file" in refusal(tmp_path / "it.pt", then=": ")
        assert "not a regular file" in refusal(tmp_path, then=": ")
        torch.save({}, tmp_path / "it.pt")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        with pytest.raises(ModelError, match="TMPDIR"):
            read_pickle(tmp_path / "it.pt")

    def test_a_child_that_dies(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.save({}, tmp_path / "it.pt")
        script = tmp_path / "child.py"
        monkeypatch.setattr(pickles, "SCRIPT", script)
        script.write_text("import os; os.abort()")
        assert "stopped (Aborted" in refusal(tmp_path / "it.pt")
        script.write_text("import nothing_of_that_name")
        assert "No module named" in refusal(tmp_path / "it.pt")
        for answer in ("{", "[]", '{"dict": {"a": {"tensor": "9"}}}', "[" * 10**5):
            script.write_text(
                f"import sys; open(sys.argv[2] + '/answer.json', 'w').write({answer!r})"
            )
            refusal(tmp_path / "it.pt")
