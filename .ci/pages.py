"""A hook of mkdocs: pages lie where they do in the repository, so that links between them are the
same on GitHub and on the site."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", "docs/**/*", "weights/*/README.md", "examples/**/*", "pdae_cli/cli/*.json")


def on_files(files: Files, config: Any) -> Files:
    """Take the repository's pages, and what they show, in place of the folder docs/ alone."""
    theirs = [file for file in files if config["docs_dir"] != file.src_dir]
    paths = sorted({path for one in PAGES for path in ROOT.glob(one) if path.is_file()})
    places = [path.relative_to(ROOT).as_posix() for path in paths]
    return Files(
        [*theirs, *(File.generated(config, one, abs_src_path=str(ROOT / one)) for one in places)]
    )
