"""Glossary terms on the pages of chapters: the first use of each becomes a link to its entry.

The notebooks stay plain, because Colab would show a role as raw text; only the copy that Sphinx reads has the
links. Which terms there are, the glossary page says.

What is no running text is told by one expression, not by markdown-it-py: its tokens within a line do not say where
in the source they stand, so the text could not be put back, and links without a target are plain text to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Terms that are also everyday words: a link stands only where a chapter introduces them, in italics or bold.
EVERYDAY = {
    "activation",
    "arm",
    "claim",
    "concept",
    "control",
    "dictionary",
    "hook",
    "lead",
    "margin",
    "mask",
    "position",
    "prompt",
    "rank",
    "run",
    "study",
}
# What is no running text: a role in there would show, or break what it stands in.
PROTECTED = re.compile(
    r"""
      ^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)           # fenced code, directives
    | ^\#{1,6}\ .*?$                                  # headings
    | ^:{3,}.*?$ | ^:[\w-]+:.*?$ | ^\([^)\n]+\)=\s*$  # fences of colons, options, targets
    | ^(?:\ {4}|\t).*?$                               # indented code
    | ^\ {0,3}<[/!a-zA-Z].*?(?=\n\s*\n|\Z)            # a block of HTML, comments too
    | <!--.*?--> | </?[a-zA-Z][^>]*>                  # HTML within a line
    | \\begin\{(?P<env>\w+\*?)\}.*?\\end\{(?P=env)\}
    | \$\$.*?\$\$ | \$[^$]+\$
    | (?:\{[\w:.-]+\})?(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)  # code, and roles
    | !?\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])            # links and images
    | \{\{.*?\}\}
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


def read_terms(page: Path) -> dict[str, str]:
    """The terms that a glossary page explains, each with the first term of its entry; none if there is no page.

    An entry may have several terms (``SAE``, ``sparse autoencoder``), one a line above its text.
    """
    if not page.exists():
        return {}
    block = re.search(r"^```\{glossary\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    terms: dict[str, str] = {}
    entry = ""
    for line in block[1].splitlines() if block else []:
        if not line.strip() or line.startswith((" ", ":")):
            entry = ""
        else:
            entry = entry or line.strip()
            terms[line.strip()] = entry
    return terms


def link_first_uses(notebook: NotebookNode, terms: Mapping[str, str]) -> None:
    """Link the first use of each entry's terms in the notebook's text, and no later one.

    Plurals count as uses. Code, formulas, headings, links, other roles and HTML are left as they are. An
    everyday word (``EVERYDAY``) counts only where it is emphasised.
    """
    if not terms:
        return
    by_name = {term.lower(): term for term in terms}
    linked: set[str] = set()
    # The longest first: the rank in "effective rank" is no use of "rank".
    known = "|".join(r"\s+".join(map(re.escape, name.split())) for name in sorted(by_name, key=len, reverse=True))
    use = re.compile(rf"(?<![\w-])(?P<term>{known})(?:e?s)?(?![\w-])", re.IGNORECASE)

    def link(found: re.Match[str]) -> str:
        spelt, shown = (" ".join(text.split()) for text in (found["term"], found[0]))
        term = by_name[spelt.lower()]
        emphasised = found.string[: found.start()].endswith("*") and found.string.startswith("*", found.end())
        # A sentence may raise a term's first letter; other capitals belong to the term: TopK, SAE.
        same = spelt[0].lower() + spelt[1:] == term if term[0].islower() else spelt == term
        if terms[term] in linked or not same or (term in EVERYDAY and not emphasised):
            return found[0]
        linked.add(terms[term])
        return f"{{term}}`{shown}`" if shown == term else f"{{term}}`{shown} <{term}>`"

    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        pieces, end = [], 0
        for kept in PROTECTED.finditer(cell.source):
            pieces += [use.sub(link, cell.source[end : kept.start()]), kept[0]]
            end = kept.end()
        cell.source = "".join([*pieces, use.sub(link, cell.source[end:])])
