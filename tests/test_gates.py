"""What the code must not do, read from its syntax trees; what may depend on what; no network."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Command

from pdae_cli.cli.output import printable
from pdae_cli.diffusion.noise import generator

PACKAGE = ROOT / "pdae_cli"
PICKLES = PACKAGE / "checkpoints" / "pickles.py"
PIPELINE = PACKAGE / "checkpoints" / "pipeline.py"
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

# What is refused → the files that may, with the reason beside the name.
FORBIDDEN_IMPORTS: dict[str, set[Path]] = {
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
    "dill": set(),
    "pickletools": {PICKLES},  # reads a pickle's opcodes without running them
    "numpy": {  # its load reads pickles; OpenCV takes its arrays, and exports are its files
        PACKAGE / "pictures" / "photos" / "faces.py",
        PACKAGE / "engine" / "columns.py",
    },
    "requests": set(),
    "urllib": set(),
    "http": set(),
    "socket": set(),
}
FORBIDDEN_CALLS: dict[str, set[Path]] = {
    "eval": set(),
    "exec": set(),
    "compile": set(),
    "__import__": set(),
    "torch.load": {PICKLES},  # in a child process, weights only
    "yaml.load": set(),
    "yaml.unsafe_load": set(),
    "yaml.full_load": set(),
    "os.system": set(),
    "os.popen": set(),
    "torch.hub.load": set(),
    "safetensors.torch.load_file": {
        PACKAGE / "engine" / "tensors.py"
    },  # which checks the header first
    "load_file": {PICKLES},  # likewise, what the child wrote
    "safe_open": set(),
}
FORBIDDEN_ARGUMENTS: dict[str, set[object]] = {
    "shell": {True},
    "weights_only": {False},
    "strict": {False},  # of load_state_dict: see below
    "trust_remote_code": {True, False},
    "allow_pickle": {True},
}
AGREED = {
    "torch": "2.10",  # CVE-2026-24747
    "typer": None,
    "rich": None,
    "pillow": "12.3",  # CVE-2026-40192 and others
    "safetensors": "0.8",  # writes atomically
    "huggingface-hub": None,
    "accelerate": None,
    "pyyaml": None,
}


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each import as a dotted name, and how many packages above it is looked for (0: anywhere)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"{node.module}." if node.module else ""
            yield from ((base + alias.name, node.level) for alias in node.names)


def modules(path: Path) -> Iterator[str]:
    """The dotted names that a file of the package imports, absolute."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for name, level in imports(TREES[path]):
        above = package[: len(package) - level + 1] if level else ()
        yield ".".join((*above, name))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


class TestCode:
    """R7, R11."""

    def test_the_gates_can_close(self) -> None:
        tree = ast.parse("import pickle as p\nfrom os import system\neval('1', strict=False)")
        assert {name for name, _ in imports(tree)} == {"pickle", "os.system"}
        assert [ast.unparse(call.func) for call in calls(tree)] == ["eval"]
        assert len(TREES) > 50

    def test_no_forbidden_imports(self) -> None:
        found = [
            f"{path.relative_to(ROOT)}: {name}"
            for path in TREES
            for name in modules(path)
            if path not in FORBIDDEN_IMPORTS.get(name.split(".")[0], {path})
        ]
        assert found == []

    def test_no_forbidden_calls(self) -> None:
        found = [
            f"{where(path, call)}: {ast.unparse(call.func)}"
            for path, tree in TREES.items()
            for call in calls(tree)
            if path not in FORBIDDEN_CALLS.get(ast.unparse(call.func), {path})
        ]
        assert found == []

    def test_no_forbidden_arguments(self) -> None:
        """zip(strict=False) is something else, and refused alike."""
        found = [
            f"{where(path, call)}: {argument.arg}"
            for path, tree in TREES.items()
            for call in calls(tree)
            for argument in call.keywords
            if argument.arg in FORBIDDEN_ARGUMENTS
            and isinstance(argument.value, ast.Constant)
            and argument.value.value in FORBIDDEN_ARGUMENTS[argument.arg]
        ]
        assert found == []

    def test_pickles_are_read_weights_only(self) -> None:
        loads = [one for one in calls(TREES[PICKLES]) if ast.unparse(one.func) == "torch.load"]
        assert loads
        for call in loads:
            arguments = {argument.arg: ast.unparse(argument.value) for argument in call.keywords}
            assert arguments["weights_only"] == "True"

    def test_attributes_are_named_literally(self) -> None:
        found = [
            where(path, call)
            for path, tree in TREES.items()
            for call in calls(tree)
            if ast.unparse(call.func) in ("getattr", "importlib.import_module")
            and not isinstance(call.args[ast.unparse(call.func) == "getattr"], ast.Constant)
        ]
        assert found == []

    def test_nothing_below_cli_prints_or_reads_the_environment(self) -> None:
        found = [
            where(path, node)
            for path, tree in TREES.items()
            if PACKAGE / "cli" not in path.parents and path != PICKLES  # whose child needs PATH
            for node in ast.walk(tree)
            if ast.unparse(node.func if isinstance(node, ast.Call) else node)
            in ("print", "os.environ", "os.getenv", "sys.argv", "builtins.input")
        ]
        assert found == []


class TestDependencies:
    """R28."""

    PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def test_they_are_the_agreed_ones_past_known_holes(self) -> None:
        found = dict(
            re.fullmatch(r"([a-z-]+)>=([0-9.]+)", one).groups()  # type: ignore[union-attr]
            for one in self.PROJECT["dependencies"]
        )
        assert found.keys() == AGREED.keys()
        for name, floor in AGREED.items():
            if floor is not None:
                assert tuple(map(int, found[name].split("."))) >= tuple(map(int, floor.split(".")))

    def test_nothing_else_is_imported_where_it_isnt_an_extra(self) -> None:
        """At a file's top only what is always installed; extras inside what uses them. One file is
        diffusers' to import, and nobody else's."""
        known = {"torch", "typer", "rich", "PIL", "safetensors", "huggingface_hub", "accelerate"}
        known |= {"yaml", "click", "filelock"}  # which the others bring
        known |= {"pdae_cli", *sys.stdlib_module_names}
        found = [
            f"{where(path, node)}: {name}"
            for path, tree in TREES.items()
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name, level in imports(node)
            if level == 0 and name.split(".")[0] not in known
            if (path, name.split(".")[0]) != (PIPELINE, "diffusers")
        ]
        assert found == []
        theirs = f"pdae_cli.checkpoints.{PIPELINE.stem}."
        assert [p for p in TREES for name in modules(p) if f"{name}.".startswith(theirs)] == []


FAST = ("--inference-steps", "2")


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """R26, R29: whoever opens a socket fails."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "__init__", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.mark.usefixtures("no_sockets")
class TestNoNetwork:
    def test_the_fixture_works(self) -> None:
        with pytest.raises(AssertionError, match="socket"):
            socket.create_connection(("localhost", 1))

    def test_commands_on_a_local_model(
        self, pdae: Command, pictures: list[Path], tmp_path: Path
    ) -> None:
        z = tmp_path / "z.safetensors"
        for args in (
            ("--help",),
            ("--version",),
            ("encode", pictures[0], "-o", z, *FAST),
            ("decode", z, "-o", tmp_path / "back.png"),
            ("sample", "-n", 1, "-o", tmp_path / "new.png", *FAST),
            ("info", z),
        ):
            result = pdae(*args)
            assert result.code == 0, result.err

    def test_names_that_are_no_models(self, pdae: Command, tmp_path: Path) -> None:
        result = pdae("decode", "-", "-m", "face64", "-o", tmp_path / "x.png")
        assert result.code == 4 and "did you mean faces64?" in result.err


def test_an_import_opens_no_socket() -> None:
    program = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('a socket was opened')\n"
        "socket.socket.__init__ = refuse\n"
        "import pdae_cli, pdae_cli.cli, pdae_cli.training, pdae_cli.checkpoints.convert\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("offline", "words"), [(True, "HF_HUB_OFFLINE"), (False, "unreachable")])
def test_without_a_network_a_missing_hub_model_is_one_line(
    pdae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, words: str
) -> None:
    """Nothing answers, and offline nothing is asked."""
    from huggingface_hub import constants

    def refuse(*args: object, **options: object) -> None:
        if offline:
            pytest.fail("a socket was opened")
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    result = pdae("sample", "-m", "someone/faces", "-o", tmp_path / "x.png")
    assert result.code == 4 and len(result.err.splitlines()) == 1
    assert "someone/faces" in result.err and words in result.err


class TestTerminal:
    """R5: nothing that a name holds steers a terminal."""

    STEERING = frozenset(
        c for c in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    )  # fmt: skip

    def test_known_ones_are_among_them(self) -> None:
        """C0, C1, soft hyphen, bidi overrides and isolates, joiners, line and paragraph ends."""
        c0, c1 = "\x00\x07\x08\x1b\r\n\x7f", "\x85\x9b\x9d"
        for c in c0 + c1 + "\xad\u061c\u200b\u200f\u2028\u2029\u202e\u2066\ufeff\U000e0041":
            assert c in self.STEERING and printable(c) != c

    def test_every_character_there_is(self) -> None:
        assert not any(printable(c) == c for c in self.STEERING)
        assert printable("Grüße 顔 🙂 smile (1).png") == "Grüße 顔 🙂 smile (1).png"

    def test_a_thousand_names(self) -> None:
        steering = sorted(self.STEERING)
        for number in range(1000):
            name = fuzzed(number, steering)
            assert not self.STEERING & set(printable(name))

    def test_names_are_no_markup(self, pdae: Command, tmp_path: Path) -> None:
        result = pdae("encode", "[red]:bomb:{}%s.png", "-o", tmp_path / "out")
        assert result.code == 3 and "[red]:bomb:{}%s.png" in result.err

    @pytest.mark.parametrize("number", range(6))
    def test_commands(self, pdae: Command, tmp_path: Path, number: int) -> None:
        """As inputs, models, attributes and solvers, in text and in JSON."""
        dangerous = sorted(c for c in self.STEERING if "\0" < c < "\ud800")
        name = fuzzed(number, dangerous) + "\x1b[2J\u202e"
        for args in (
            ("encode", name, "-o", tmp_path / "out"),
            ("encode", name, "-o", tmp_path / "out", "--json"),
            ("sample", "-m", name, "-o", tmp_path / "x.png"),
            ("sample", "--solver", name, "-o", tmp_path / "x.png"),
            ("manipulate", "-", "--attr", f"{name}=1", "-o", tmp_path / "x.png"),
            ("info", name),
        ):
            result = pdae(*args, stdin=b"x")
            assert result.code in (2, 3, 4)
            said = set((result.out.decode() + result.err).replace("\n", ""))
            assert not self.STEERING & said, args[:2]


def fuzzed(number: int, characters: list[str]) -> str:
    """A name of letters and of those characters."""
    import torch

    draws = torch.randint(0, len(characters), (12,), generator=generator(number, "name"))
    return "a".join(characters[draw] for draw in draws.tolist())
