"""The house in figures: lines, rooms, imports, functions, frames, options; as a Markdown table.

    python benchmarks/house.py

The rules among them (imports one way, no circles, lengths, options) are gates in
tests/test_house.py, which reads them from here.
"""

from __future__ import annotations

import ast
import inspect
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pdae_cli"
# Rooms from the lowest up: each imports its own files and rooms below it, and no sibling's.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("errors",), ("files",), ("diffusion", "networks", "pictures"), ("engine",), ("checkpoints",),
    ("evaluation",), ("training",), ("cli",),
)  # fmt: skip
STAGES = ("dpm", "autoencoder", "latent")
Functions = ast.FunctionDef | ast.AsyncFunctionDef
Graph = dict[str, set[str]]


def lines(*paths: Path) -> int:
    """Count the lines of Python files, blank and comment lines too, and of those below folders."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    return sum(len(file.read_text().splitlines()) for file in files)


def floor(module: str) -> int:
    """Return how high a module's room lies; -1: not a room of the package."""
    parts = [*module.split("."), ""]
    found = [n for n, rooms in enumerate(ROOMS) if parts[0] == "pdae_cli" and parts[1] in rooms]
    return found[0] if found else -1


def name_of(path: Path) -> str:
    """Return a file's dotted name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a file of the package imports, wherever in its code."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def arrows() -> Graph:
    """Return each file of the package with the files of it that it imports."""
    paths = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    found: Graph = {}
    for own, path in paths.items():
        names = imported(path, ast.parse(path.read_text()))
        modules = {name if name in paths else name.rpartition(".")[0] for name in names}
        found[own] = {name for name in modules if name in paths and name not in (own, "pdae_cli")}
    return found


def circles(graph: Graph) -> list[str]:
    """Return the files of circles of imports: what is left when ends are taken away, both ways."""
    left = {name: set(targets) for name, targets in graph.items()}
    while True:
        aimed_at = {target for targets in left.values() for target in targets}
        ends = {name for name, to in left.items() if not to & left.keys() or name not in aimed_at}
        if not ends:
            return sorted(left)
        left = {name: to - ends for name, to in left.items() if name not in ends}


def back_arrows(graph: Graph) -> list[str]:
    """Return imports of a room above one's own, or beside it."""
    return [
        f"{own} → {target}"
        for own, targets in graph.items()
        if own not in ("pdae_cli", "pdae_cli.__main__")
        for target in sorted(targets)
        if own.split(".")[1] != target.split(".")[1] and floor(target) >= floor(own)
    ]


def functions(*folders: Path) -> dict[str, int]:
    """Return each function's length in lines, by file and name."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Functions):
                place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                found[place] = (node.end_lineno or 0) - node.lineno + 1
    return found


def shared_names(*codes: str) -> list[str]:
    """Return the names that more than one class has."""
    trees = (ast.walk(ast.parse(code)) for code in codes)
    names = Counter(node.name for tree in trees for node in tree if isinstance(node, ast.ClassDef))
    return sorted(name for name, count in names.items() if count > 1)


def rooms() -> list[str]:
    """Return folders and modules at the package's root."""
    entries = (path for path in PACKAGE.iterdir() if not path.name.startswith("_"))
    return sorted(path.stem for path in entries if path.is_dir() or path.suffix == ".py")


def commands() -> dict[str, Any]:
    """Return every command by what one types."""
    from pdae_cli.cli.app import app

    def below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        group = getattr(command, "commands", None)
        if group is None:
            yield name, command
        for word, one in (group or {}).items():
            yield from below(one, f"{name} {word}".strip())

    return dict(below(typer.main.get_command(app), ""))


def shown_options(command: Any) -> list[str]:
    """Return the options of a command's --help, but --help itself."""
    return [
        one.name
        for one in command.params
        if one.param_type_name == "option" and not one.hidden and one.name != "help"
    ]


def frames() -> list[str]:
    """Return the package's functions between `pdae encode`'s and the U-Net's, both included, on the
    way of a picture; torch's frames aren't counted."""
    from PIL import Image

    from pdae_cli.networks.unet import InputHalf

    seen: list[list[str]] = []

    def look(module: Any, args: Any) -> None:
        stack = [one for one in inspect.stack() if "pdae_cli" in Path(one.filename).parts]
        names = [f"{Path(one.filename).stem}.{one.function}" for one in reversed(stack)]
        if "encode.encode" in names:
            seen.append(names[names.index("encode.encode") :])

    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "a.png")
        Image.new("RGB", (64, 64)).save(picture)
        from torch.nn.modules.module import register_module_forward_pre_hook

        hook = register_module_forward_pre_hook(
            lambda module, args: look(module, args) if isinstance(module, InputHalf) else None
        )
        arguments = [str(picture), "-o", str(Path(folder, "z.safetensors")), "--quiet"]
        try:
            commands()["encode"].main([*arguments, "--inference-steps", "1"], standalone_mode=False)
        finally:
            hook.remove()
    return max(seen, key=len)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    graph, tests = arrows(), ROOT / "tests"
    longest = max(functions(PACKAGE).items(), key=lambda pair: pair[1])
    files = {path: lines(path) for folder in (PACKAGE, tests) for path in folder.rglob("*.py")}
    file = max(files, key=lambda path: files[path])
    paper = [PACKAGE / room for room in ("diffusion", "networks", "engine")]
    paper += [PACKAGE / "training" / f"{stage}.py" for stage in STAGES]
    way = frames()
    table = {
        "lines of the package": f"{lines(PACKAGE):,}",
        "diffusion, networks, engine, three stages": f"{lines(*paper):,}",
        "files of the package": len(list(PACKAGE.rglob("*.py"))),
        "rooms at the root": len(rooms()),
        "files in circles; arrows back": f"{len(circles(graph))}; {len(back_arrows(graph))}",
        "longest function": f"{longest[1]} ({longest[0].split()[-1]})",
        "longest file, tests included": f"{files[file]} ({file.name})",
        "frames from `pdae encode` to the U-Net": len(way),
        "lines of tests": f"{lines(tests):,}",
    }
    for name in ("encode", "manipulate"):
        table[f"options in `pdae {name} --help`"] = len(shown_options(commands()[name]))
    print("| figure | value |\n|---|---|")
    for figure, value in table.items():
        print(f"| {figure} | {value} |")
    print(f"\n{' → '.join(way)}")


if __name__ == "__main__":
    main()
