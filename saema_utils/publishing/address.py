"""Where the book lives on the web. The owner and name below stand here and nowhere else.

Badges, launch buttons, the setup cell, the citation and source links follow from it; while no owner is named there are
none of these, for they would lead nowhere. After a fork,
``python -m saema_utils.publishing.address OWNER/NAME`` rewrites this line and every committed follower; with
``--release`` it refuses a tree that cannot be published from there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from saema_utils.errors import BookError, one_line

REPOSITORY = "OWNER/saema-book"
VERSION = "0.1.0"
# Badges, launch buttons and source links open what the setup cell installs, so that notebook and package agree.
BRANCH = f"v{VERSION}"
HERE = "saema_utils/publishing/address.py"
# Committed files that quote the address; a test checks that they agree with it.
FOLLOWERS = ("notebooks/*.ipynb", "README.md", "CITATION.cff", "CONTRIBUTING.md", "book/cite.md")
# Lines that are there only while the book has an address: after which line of which file they come.
CITED = {
    "CITATION.cff": ("license: MIT\n", 'repository-code: "https://github.com/OWNER/NAME"\n'),
    "book/cite.md": ("  year    = {2026},\n", "  url     = {https://github.com/OWNER/NAME}\n"),
}


def is_set() -> bool:
    """Whether the book has an address: an owner in place of the word OWNER."""
    return not REPOSITORY.startswith("OWNER/")


def repository_url() -> str:
    """Address of the repository, such as ``https://github.com/OWNER/NAME``."""
    return f"https://github.com/{REPOSITORY}"


def source_url(path: str) -> str:
    """Address of a file of the repository as released."""
    return f"{repository_url()}/blob/{BRANCH}/{path}"


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
    changed = _moved(root, new)
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
    return list(changed)


def _moved(root: Path, new: str) -> dict[Path, str]:
    """What the files that quote the address would hold if it were ``new``; only those that would change."""
    changed = {}
    for path in [root / HERE, *(p for glob in FOLLOWERS for p in sorted(root.glob(glob)))]:
        text = path.read_text(encoding="utf-8")
        moved = text.replace(REPOSITORY, new)
        before, line = CITED.get(path.relative_to(root).as_posix(), ("", ""))
        line = line.replace("OWNER/NAME", new)
        if line not in moved:
            moved = moved.replace(before, before + line, 1)
        if moved != text:
            changed[path] = moved
    return changed


def check_release(root: Path, repository: str) -> None:
    """Refuse to publish a book whose readers could not install it.

    What a reader opens in Colab is what was committed and tagged; an address that only this checkout knows
    helps nobody.

    Raises
    ------
    BookError
        If committed files name another repository than the one that publishes, or the release's tag is not there.
    """
    stale = [path.relative_to(root).as_posix() for path in _moved(root, repository)]
    stale = stale or _git(root, "diff", "--name-only", "HEAD", "--", HERE, *FOLLOWERS).split()
    if stale:
        raise BookError(
            f"{len(stale)} committed files do not name {repository} ({stale[0]}), and Colab would look elsewhere. "
            f"Run: make address REPOSITORY={repository}, commit, and tag that commit {BRANCH}."
        )
    if not _git(root, "ls-remote", "--tags", "origin", f"refs/tags/{BRANCH}"):
        raise BookError(
            f"{repository} has no tag {BRANCH}, from which notebooks install the package. "
            f"Run: git tag {BRANCH} && git push origin {BRANCH}"
        )


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BookError(f"git {arguments[0]} failed in {root}: {one_line(done.stderr)}. Run it in a clone.")
    return done.stdout.strip()


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if word != "--release"]
    if len(arguments) != 1:
        sys.exit("usage: python -m saema_utils.publishing.address [--release] OWNER/NAME")
    try:
        if "--release" in sys.argv:
            check_release(Path.cwd(), arguments[0])
            print(f"{arguments[0]} can publish {BRANCH}")
        else:
            moved = move_repository(Path.cwd(), arguments[0])
            print("\n".join(str(path) for path in moved) or "nothing to change")
    except BookError as error:
        sys.exit(f"saema: {error}")
