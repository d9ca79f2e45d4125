"""The table of fields in docs/checkpoints.md: `python tests/fields_page.py` writes it, from the
readers' own names, and with what the page already says of those that are followed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "checkpoints.md"
UNTOLD = "(to be told)"
BEGIN, END = "<!-- fields: python tests/fields_page.py -->\n", "<!-- end of fields -->\n"


def kinds() -> dict[str, Any]:
    """Every kind of config, by its name."""
    from pdae_cli.checkpoints import compvis, diffae, diffusers, first_stage, guided, pdae
    from pdae_cli.checkpoints.source import Fields

    readers = (diffusers, first_stage, compvis, pdae, diffae, guided)
    every = [one for reader in readers for one in vars(reader).values() if isinstance(one, Fields)]
    return {one.config: one for one in every}


def told() -> dict[tuple[str, str], str]:
    """What the page says of each config's field."""
    rows = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    cells = [row.removeprefix("| ").removesuffix(" |").split(" | ") for row in rows]
    return {(config, field.strip("`")): what for config, field, what in cells}


def table() -> str:
    """All rows."""
    rows = ["| config | field | what becomes of it |\n| --- | --- | --- |\n"]
    known = told()
    for config, fields in kinds().items():
        taken = fields.taken.split()
        rows += [_row(config, f"`{name}`", known.get((config, name), UNTOLD)) for name in taken]
        for name, usual in fields.fixed.items():
            if name not in taken:
                shown = " or ".join(f"`{value}`" for value in usual)
                rows.append(_row(config, f"`{name}`", f"refused unless {shown or 'left out'}"))
        for why, names in fields.idle.items():
            every = ", ".join(f"`{name}`" for name in names.split())
            rows.append(_row(config, every, f"nothing: {why}"))
    return "".join(rows)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def page() -> str:
    """The whole page, with the table of now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    sys.path.insert(0, str(PAGE.parents[1]))
    PAGE.write_text(page())
