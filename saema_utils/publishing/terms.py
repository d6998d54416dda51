"""Glossary terms on the pages of chapters: the first use of each becomes a link to its entry.

The notebooks stay plain, because Colab would show a role as raw text; only the copy that Sphinx reads has the
links. Which terms there are, the glossary page says.

What is no running text is told by one expression, not by markdown-it-py: its tokens within a line do not say where
in the source they stand, so the text could not be put back, and links without a target are plain text to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape, unescape
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
    "score",
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

# Of a built glossary: one or more terms and what explains them; and a link to one from any page.
ENTRY = re.compile(r'(?P<terms>(?:<dt id="term-[^"]+".*?</dt>\s*)+)<dd>(?P<text>.*?)</dd>', re.DOTALL)
LINK_TO_TERM = re.compile(r'<a class="reference internal" href="[^"]*#(?P<term>term-[^"]+)"(?! title)')
TAG = re.compile(r"<[^>]*>")


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

    Text is also what a run wrote, the findings, and the captions of figures: a term is linked where it is read first.

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

    def link_all(text: str) -> str:
        pieces, end = [], 0
        for kept in PROTECTED.finditer(text):
            pieces += [use.sub(link, text[end : kept.start()]), kept[0]]
            end = kept.end()
        return "".join([*pieces, use.sub(link, text[end:])])

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = link_all(cell.source)
            continue
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = link_all(output["data"]["text/markdown"])
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if "caption" in figure:
            figure["caption"] = link_all(figure["caption"])


def explain_on_hover(site: Path) -> None:
    """Give every link to a term of the glossary its explanation, which a browser shows under the pointer."""
    page = site / "book" / "glossary.html"
    if not page.exists():
        return
    said: dict[str, str] = {}
    for entry in ENTRY.finditer(page.read_text(encoding="utf-8")):
        # Under the pointer no formula is set: what is left of one are its letters.
        text = re.sub(r"\\mathrm\{(\w+)\}|\\[()]|\\", r"\1", unescape(TAG.sub("", entry["text"])))
        names = re.findall(r'<dt id="([^"]+)"', entry["terms"])
        said |= dict.fromkeys(names, escape(" ".join(text.split())))

    def explained(found: re.Match[str]) -> str:
        return f'{found[0]} title="{said[found["term"]]}"' if found["term"] in said else found[0]

    for path in site.rglob("*.html"):
        before = path.read_text(encoding="utf-8")
        after = LINK_TO_TERM.sub(explained, before)
        if after != before:
            path.write_text(after, encoding="utf-8")
