"""Figures to hover over: plotly in a notebook, a page element that needs no network in the book.

Under papermill plotly emits only a JSON MIME type that the built page shows as nothing. There the
figure is written as plain HTML: its data, a description, and a box that ``book/static/interactive.js``
fills with the one plotly script of the site.
"""

from __future__ import annotations

import html
import json
import os
import re
from typing import TYPE_CHECKING, Any

from saema_utils.errors import BookError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PUBLISHING = "SAEMA_PUBLISHING"
ELEMENT = re.compile(
    r'class="saema-plot".*?aria-label="([^"]*)".*<script type="application/json">(.*)</script>', re.DOTALL
)


def publishing() -> bool:
    """Whether this notebook is being executed for the book."""
    return os.environ.get(PUBLISHING) == "1"


def interactive(figure: Figure, name: str, alt: str) -> Any:
    """Show a plotly figure: as plotly does it in a notebook, as local HTML in the published book.

    Parameters
    ----------
    figure
        A plotly figure. Leave template, background and font colour alone: they follow the page.
    name
        Identifier within the page, lower-case letters, digits and hyphens (``poles-map``).
    alt
        What the figure shows, in words, for a reader who cannot see or hover.

    Raises
    ------
    BookError
        If the name is not an identifier, or the description is missing.
    """
    if not name or not all(c.isascii() and (c.islower() or c.isdigit() or c == "-") for c in name):
        raise BookError(f"interactive figure is named {name!r}; allowed: lower-case letters, digits and hyphens.")
    if len(alt.split()) < 4:
        raise BookError(f"interactive figure {name!r} has the description {alt!r}; say in words what it shows.")
    if not publishing():
        return figure
    from IPython.display import HTML

    return HTML(page_html(figure.to_json(), name, alt, int(figure.layout.height or 460)))


def page_html(figure_json: str, name: str, alt: str, height: int) -> str:
    """The element of the published page: description, empty box, and the figure's data."""
    plain = json.loads(figure_json)
    layout = plain.get("layout", {})
    # The page decides on these: they change between light and dark, narrow and wide.
    for key in ("template", "paper_bgcolor", "plot_bgcolor", "width"):
        layout.pop(key, None)
    # "</" inside a script element would end it, whatever the quotes around it.
    data = json.dumps({"data": plain["data"], "layout": layout}, sort_keys=True, separators=(",", ":"))
    data = data.replace("</", "<\\/")
    description = html.escape(alt, quote=True)
    return (
        f'<div class="saema-interactive" id="{name}">'
        f'<div class="saema-plot" role="group" tabindex="0" style="height:{height}px" '
        f'aria-roledescription="interactive figure" aria-label="{description}">'
        f'<p class="saema-plot-fallback">{description}</p></div>'
        f'<p class="saema-plot-reading" aria-live="polite"></p>'
        f'<script type="application/json">{data}</script></div>'
    )


def without_page(element: str) -> dict[str, Any] | None:
    """What a notebook shows in place of :func:`page_html` where there is no page; None for any other HTML.

    That is plotly's own figure, and its description where plotly is not known.
    """
    found = ELEMENT.search(element)
    if found is None:
        return None
    said = f"{html.unescape(found[1])} (The book's page draws it.)"
    return {
        "application/vnd.plotly.v1+json": json.loads(found[2]),
        "text/html": f"<p>{html.escape(said)}</p>",
        "text/plain": said,
    }
