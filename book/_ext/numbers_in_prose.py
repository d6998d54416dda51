"""Sphinx extension: numbers in prose are written as in tables and findings, whoever typed them."""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from saema_utils.wording import in_prose

VERBATIM = (nodes.literal, nodes.FixedTextElement, nodes.math, nodes.raw, addnodes.desc_signature)


class NumbersInProse(SphinxPostTransform):
    """Every text but code, formulas, raw HTML and signatures."""

    default_priority = 900

    def run(self, **kwargs):
        for text in list(self.document.findall(nodes.Text)):
            written = in_prose(str(text))
            above, verbatim = text.parent, False
            while above is not None and not verbatim:
                verbatim, above = isinstance(above, VERBATIM), above.parent
            if written != text and not verbatim:
                text.parent.replace(text, nodes.Text(written))


def setup(app):
    app.add_post_transform(NumbersInProse)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
