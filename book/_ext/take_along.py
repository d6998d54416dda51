"""Sphinx extension: a button on each page for what a reader may want of it elsewhere.

That is a print, which browsers save as PDF too, and of a chapter its notebook, with the outputs of the run.
"""

from __future__ import annotations

from pathlib import PurePosixPath


def add_button(app, pagename, templatename, context, doctree):
    if doctree is None:
        return  # an index or the search, which nobody takes along
    ways = [
        {
            "type": "javascript",
            "javascript": "window.print()",
            "text": "Print, or save as PDF",
            "icon": "fas fa-print",
            "label": "print-button",
        }
    ]
    if pagename.startswith("notebooks/"):
        notebook = {
            "type": "link",
            "url": f"{PurePosixPath(pagename).name}.ipynb",
            "text": "Notebook with its results",
            "icon": "fas fa-file-code",
            "label": "notebook-button",
        }
        ways.insert(0, notebook)
    context["header_buttons"].append(
        {
            "type": "group",
            "tooltip": "Take this page along",
            "icon": "fas fa-download",
            "label": "take-along",
            "buttons": ways,
        }
    )


def setup(app):
    app.connect("html-page-context", add_button, priority=502)  # behind those of the theme, which come at 501
    return {"parallel_read_safe": True, "parallel_write_safe": True}
