"""Tables: labels, landmarks, lists of files."""

from __future__ import annotations

import json
import random
from pathlib import Path

from .mutations import TEXT, lines, tree
from .using import LOOP, MODEL, Kind, Kinds, by_commands, model_folder

CELLS = (
    "", "1", "0", "-1", "2", "1.0", "True", "nan", " 1", "1 ", "file", "split", "source", "train",
    "val", '"', '""', "'", "=1+1", "a\nb", "\0", "\x1b[2J", "\u202e", "x" * 200_000, "../../a.png",
    "9" * 5000, "0.png", "\N{ROMAN NUMERAL FIVE}", "\ud83d",
)  # fmt: skip


def cells(data: bytearray, chance: random.Random) -> None:
    """A table of lines: cells, columns, rows, what stands between them."""
    text = data.decode("utf-8", "replace")
    mark = next((one for one in ";, " if one in text), ",")
    rows = [line.split(mark) for line in text.split("\n")]
    action = chance.choice(
        ("cell", "cell", "cell", "head", "head", "column", "row", "cut row", "mark", "many", "wide",
         "text")
    )  # fmt: skip
    row = chance.choice(rows[:3] if action == "head" else rows)
    column = chance.randrange(len(row))
    if action in ("cell", "head"):
        row[column] = chance.choice((*CELLS, chance.choice(chance.choice(rows))))
    elif action == "column":
        kept = chance.choice((0, 2))
        rows = [one[:column] + one[column : column + 1] * kept + one[column + 1 :] for one in rows]
    elif action == "row":
        place = chance.randrange(len(rows))
        rows[place:place] = [list(row)] * chance.choice((1, 2))
        del rows[chance.randrange(len(rows))]
    elif action == "cut row":
        del row[column:]
    elif action == "many":
        rows += [row] * chance.choice((100, 30_000 if sum(map(len, row)) < 2000 else 100))
    elif action == "wide":
        row[column:column] = ["1"] * chance.choice((10, 50_000))
    elif action == "mark":
        mark = chance.choice((";", "\t", ", ", "  ", ",,", "|"))
    else:
        return chance.choice(TEXT)(data, chance)
    data[:] = "\n".join(map(mark.join, rows)).encode("utf-8", "surrogatepass")


def kinds(root: Path) -> Kinds:
    """Labels, landmarks, lists of files."""
    from labelled import labelled

    folder, made = model_folder(root / "tables"), Kinds()
    labelled(folder / "data", 12, 8)
    names = [f"{n:02d}.png" for n in range(12)]
    rows = [(name, n % 2, int(n % 4 == 1)) for n, name in enumerate(names)]
    labels = (folder / "data" / "labels.csv").read_text()
    ages = [f"{name};{odd};{20 + 3 * n},5" for n, (name, odd, _) in enumerate(rows)]
    celeba = [f"{name} {2 * odd - 1:2d} {2 * few - 1:2d}" for name, odd, few in rows]
    classes = {"labels": [[name, odd + few] for name, odd, few in rows]}
    found = {"left_eye": [10.5, 12], "right_eye": [20, 12.5], "mouth": [15, 22]}
    fit = f"attributes fit data {MODEL} --labels"
    train = "train classifier data --dpm m -o run --condition odd --base-channels 8"
    train = f"{train} {LOOP} --dry-run --labels"
    for name, file, text, mutate, line in (
        ("csv", "it.csv", labels, cells, fit),
        ("csv for a classifier", "it.csv", labels, cells, train),
        ("sources", "it.csv", labels.replace("split", "source"), cells, fit),
        ("numbers", "it.csv", "\n".join(["file;odd;age (years)", *ages]), cells, fit),
        ("celeba", "list_attr_celeba.txt", "\n".join(["12", "odd few", *celeba]), cells, fit),
        ("dataset.json", "it.json", json.dumps(classes), tree, fit),
        ("landmarks", "it.json", json.dumps(dict.fromkeys(names, found)), tree,
         "align data -o out/ --size 32 --landmarks"),
        ("list", "it.txt", "\n".join(f"data/{name}" for name in names), lines,
         f"encode {MODEL} --no-noise -o out/ --files-from"),
    ):  # fmt: skip
        use = by_commands(folder, file, [f"{line} {file}"], [])
        made[name] = Kind(text.encode(), mutate, use)
    return made
