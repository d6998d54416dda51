"""Where the book lives on the web. The owner and name below stand here and nowhere else.

Badges, launch buttons, the setup cell, the citation and source links follow from it. After a fork,
``python -m saema_utils.address OWNER/NAME`` rewrites this line and every committed follower.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from .errors import BookError

REPOSITORY = "OWNER/saema-book"
BRANCH = "main"
VERSION = "0.1.0"
# Committed files that quote the address; a test checks that they agree with it.
FOLLOWERS = ("notebooks/*.ipynb", "README.md", "CITATION.cff", "CONTRIBUTING.md", "book/cite.md")


def repository_url() -> str:
    """Address of the repository, such as ``https://github.com/OWNER/NAME``."""
    return f"https://github.com/{REPOSITORY}"


def release_requirement() -> str:
    """What a fresh host hands to pip to install the package at the book's release."""
    return f"saema_utils @ git+{repository_url()}@v{VERSION}"


def source_url(path: str, line: int | None = None) -> str:
    """Address of a file of the repository on its main branch."""
    return f"{repository_url()}/blob/{BRANCH}/{path}" + (f"#L{line}" if line else "")


def colab_url(notebook: str) -> str:
    """Address that opens a source notebook (``notebooks/NN_name.ipynb``) in Colab."""
    return f"https://colab.research.google.com/github/{REPOSITORY}/blob/{BRANCH}/{notebook}"


def colab_badge(notebook: str, image: str) -> str:
    """Markdown of the badge that opens ``notebook`` in Colab; ``image`` is served with the page."""
    return f"[![Open this chapter in Colab]({image})]({colab_url(notebook)})"


def move_repository(root: Path, new: str) -> list[Path]:
    """Rewrite the address in this module and in every follower under ``root``; returns the changed files.

    Raises
    ------
    BookError
        If ``new`` is not of the form OWNER/NAME.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+", new):
        raise BookError(f"repository is {new!r}; allowed: OWNER/NAME as GitHub spells it, such as 'ada/saema-book'.")
    changed = []
    for path in [root / "saema_utils" / "address.py", *(p for glob in FOLLOWERS for p in sorted(root.glob(glob)))]:
        before = path.read_text(encoding="utf-8")
        after = before.replace(REPOSITORY, new)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m saema_utils.address OWNER/NAME")
    try:
        moved = move_repository(Path.cwd(), sys.argv[1])
    except BookError as error:
        sys.exit(f"saema: {error}")
    print("\n".join(str(path) for path in moved) or "nothing to change")
