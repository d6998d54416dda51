"""Glossary terms on the pages of chapters: linked where first used, and nowhere that a link would break."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from saema_utils.publishing.execution import chapter_notebooks
from saema_utils.publishing.terms import EVERYDAY, link_first_uses, read_terms

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "book" / "glossary.md"
ROLE = re.compile(r"\{term\}`([^`<]+?)(?: <([^`>]+)>)?`")
TERMS = {
    name: name for name in ("attention sink", "effective rank", "rank", "latent", "TopK", "run")
} | {"SAE": "SAE", "sparse autoencoder": "SAE"}  # fmt: skip


def linked(*sources: str) -> list[str]:
    notebook = new_notebook(cells=[new_markdown_cell(source) for source in sources])
    link_first_uses(notebook, TERMS)
    return [cell.source for cell in notebook.cells]


@pytest.mark.parametrize(
    ("text", "page"),
    [
        ("Latents fire.", "{term}`Latents <latent>` fire."),
        ("An attention\nsink, and a sink.", "An {term}`attention sink`, and a sink."),
        ("A topk and a TopK code.", "A topk and a {term}`TopK` code."),
        ("Its effective rank is a *rank*.", "Its {term}`effective rank` is a *{term}`rank`*."),
        ("Run a **run**, and the rank-noise plot.", "Run a **{term}`run`**, and the rank-noise plot."),
        ("A sparse autoencoder (SAE).", "A {term}`sparse autoencoder` (SAE)."),
        ("The SAE's part of ($x$) TopK.", "The {term}`SAE`'s part of ($x$) {term}`TopK`."),
    ],
)
def test_the_first_use_is_linked(text, page):
    assert linked(text) == [page]


def test_a_second_use_is_not():
    assert linked("A latent.", "A latent, the latent.") == ["A {term}`latent`.", "A latent, the latent."]


@pytest.mark.parametrize(
    "text",
    [
        "## What a latent is", "`latent`", "``a ` latent``", "```python\nlatent = 1\n```", "~~~\nlatent\n~~~",
        "$\\text{latent}$", "$$\n\\text{latent}\n$$", "\\begin{align}\nlatent\n\\end{align}", "[a latent](page.md)",
        "[a latent][there]", "![a latent](latent.png)", "<!-- latent -->", "<b title='latent'>", "{{ latent }}",
        "<details>\n<summary>latent</summary>\nlatent\n</details>", "{term}`latent`", "{doc}`the latent <page>`",
        ":::{note} latent", ":alt: a latent", "(latent)=", "Text.\n\n    latent = 1", "prelatent", "latent-wise",
        "latently",
    ],
)  # fmt: skip
def test_code_formulas_links_headings_and_html_stay_as_they_are(text):
    assert linked(text) == [text]
    after = linked(f"{text}\n\nA latent.")[0]
    assert after == f"{text}\n\nA {{term}}`latent`.", "what is protected must not count as the first use"


def test_code_cells_are_not_touched():
    notebook = new_notebook(cells=[new_code_cell("# a latent")])
    link_first_uses(notebook, TERMS)
    assert notebook.cells[0].source == "# a latent"


def test_a_glossary_lists_its_terms_and_their_other_names(tmp_path):
    page = tmp_path / "glossary.md"
    assert read_terms(page) == {}
    page.write_text("# G\n\n```{glossary}\nSAE\nsparse autoencoder\n  A code.\n\nrank\n  A count.\n```\n\nrest\n")
    assert read_terms(page) == {"SAE": "SAE", "sparse autoencoder": "SAE", "rank": "rank"}


def test_everyday_words_are_terms_of_the_glossary():
    assert set(read_terms(GLOSSARY)) >= EVERYDAY


@pytest.mark.parametrize("number", sorted(chapter_notebooks(ROOT)))
def test_every_chapter_links_its_terms_once_and_changes_in_nothing_else(number):
    glossary = read_terms(GLOSSARY)
    source = nbformat.read(chapter_notebooks(ROOT)[number], as_version=4)
    page = nbformat.read(chapter_notebooks(ROOT)[number], as_version=4)
    link_first_uses(page, glossary)
    targets = [
        target or text
        for cell, before in zip(page.cells, source.cells, strict=True)
        for text, target in ROLE.findall(cell.source)
        if cell.source != before.source
    ]
    assert targets
    assert set(targets) <= set(glossary)
    entries = [glossary[target] for target in targets]
    assert len(set(entries)) == len(entries), "one link an entry"
    for cell, before in zip(page.cells, source.cells, strict=True):
        assert ROLE.sub(r"\1", cell.source).split() == before.source.split()
