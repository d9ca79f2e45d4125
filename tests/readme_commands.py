"""Print a command of README.md by its name: the code block after `<!-- command: NAME -->`.

python tests/readme_commands.py edit
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def readme_command(name: str) -> str:
    """The single line of shell that README.md gives under a name."""
    pattern = rf"<!-- command: {re.escape(name)} -->\n```bash\n(.*)\n```"
    found = re.search(pattern, README.read_text())
    if found is None:
        raise SystemExit(f"README.md has no one-line command named {name}")
    return found.group(1)


if __name__ == "__main__":
    print(readme_command(sys.argv[1]))
