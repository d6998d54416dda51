"""Glossary terms on the pages of chapters: linked where first used, and nowhere that a link would break."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saema_utils.publishing.execution import chapter_notebooks
from saema_utils.publishing.terms import EVERYDAY, explain_on_hover, link_first_uses, read_terms

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


def test_what_a_run_wrote_and_captions_are_linked_where_they_are_read_first():
    written = new_output("execute_result", {"text/markdown": "**Latents fire.** *SAE 1.2*", "text/plain": "latent"})
    figure = {"mystnb": {"figure": {"caption": "Does a latent stay in TopK? See `latent`.", "name": "fig"}}}
    cells = [new_code_cell("x", outputs=[written]), new_code_cell("y", metadata=figure), new_markdown_cell("An SAE.")]
    notebook = new_notebook(cells=cells)
    link_first_uses(notebook, TERMS)
    said, drawn, prose = notebook.cells
    assert said.outputs[0].data["text/markdown"] == "**{term}`Latents <latent>` fire.** *{term}`SAE` 1.2*"
    assert said.outputs[0].data["text/plain"] == "latent"
    assert drawn.metadata.mystnb.figure.caption == "Does a latent stay in {term}`TopK`? See `latent`."
    assert prose.source == "An SAE.", "it was read before"


def test_a_link_to_a_term_explains_it_under_the_pointer(tmp_path):
    (tmp_path / "book").mkdir()
    entry = '<dt id="term-AEDP">AEDP<a class="headerlink" href="#term-AEDP" title="Link">#</a></dt>'
    entry += '<dt id="term-way">way<a href="#term-way">#</a></dt><dd><p>A <em>mean</em> &lt; "all"\n of it.</p></dd>'
    (tmp_path / "book" / "glossary.html").write_text(f"<dl>{entry}</dl>")
    link = '<a class="reference internal" href="book/glossary.html#term-{}">'
    page = tmp_path / "page.html"
    page.write_text(link.format("AEDP") + link.format("way") + link.format("unknown"))
    explain_on_hover(tmp_path)
    known = link.replace(">", ' title="A mean &lt; &quot;all&quot; of it.">')
    assert page.read_text() == known.format("AEDP") + known.format("way") + link.format("unknown")
    first = page.read_text()
    explain_on_hover(tmp_path)
    assert page.read_text() == first


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
