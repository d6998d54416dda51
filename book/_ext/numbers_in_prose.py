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
        for above in self.document.findall(nodes.TextElement):
            if not is_verbatim(above):
                for at in range(len(above) - 1, 0, -1):  # a number put in by a substitution, and its unit
                    if isinstance(above[at], nodes.Text) and isinstance(above[at - 1], nodes.Text):
                        above[at - 1 : at + 1] = [nodes.Text(above[at - 1] + above[at])]
                for at, part in enumerate(above):
                    if isinstance(part, nodes.Text):
                        above[at] = nodes.Text(in_prose(str(part)))


def is_verbatim(node):
    return node is not None and (isinstance(node, VERBATIM) or is_verbatim(node.parent))


def setup(app):
    app.add_post_transform(NumbersInProse)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
