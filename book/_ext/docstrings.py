"""Sphinx extension: how the package's docstrings become pages.

NumPy style numbers references from 1 in every docstring; on a page with several docstrings the numbers would clash, so
each gets names of its own. A declared result is called like the function that makes it, and is documented as that.
"""

from __future__ import annotations

import re

from sphinx.ext.autodoc import FunctionDocumenter


class ResultDocumenter(FunctionDocumenter):
    """A result that :mod:`saema_utils.runs.tables` keeps: its function's signature and docstring."""

    objtype = "result"
    directivetype = "function"
    priority = FunctionDocumenter.priority + 10

    @classmethod
    def can_document_member(cls, member, membername, isattr, parent):
        from saema_utils.runs.tables import Result

        return isinstance(member, Result)

    def import_object(self, raiseerror=False):
        found = super().import_object(raiseerror)
        self.object = getattr(self.object, "__wrapped__", self.object)
        return found


def rename_footnotes(app, what, name, obj, options, lines):
    """Turn ``.. [1]`` and ``[1]_`` into auto-numbered footnotes named after the object.

    A source that the text does not point at becomes an item of a list: footnotes need a mark.
    """
    prefix = re.sub(r"\W", "-", name)
    marked = set(re.findall(r"\[(\d+)\]_", "\n".join(lines)))
    for i, line in enumerate(lines):
        line = re.sub(r"^(\s*)\.\. \[(\d+)\]", lambda m: m[0] if m[2] in marked else f"{m[1]}{m[2]}.", line)
        line = re.sub(r"^(\s*\.\. )\[(\d+)\]", rf"\1[#{prefix}-\2]", line)
        lines[i] = re.sub(r"\[(\d+)\]_", rf"[#{prefix}-\1]_", line)


def setup(app):
    app.add_autodocumenter(ResultDocumenter)
    app.connect("autodoc-process-docstring", rename_footnotes, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
