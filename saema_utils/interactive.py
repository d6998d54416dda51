"""Figures to hover over and to steer: plotly in a notebook, page elements that need no network in the book.

Under papermill plotly emits only a JSON MIME type that the built page shows as nothing. There the
figure is written as plain HTML: its data, a description, and a box that ``book/static/interactive.js``
fills with the one plotly script of the site.

A figure is steered by plotly's own sliders and menus, which a notebook draws and which neither a keyboard nor a screen
reader can reach. The page has a native control for each, that takes the same steps: a range for a slider, radio buttons
for a menu of buttons, else a list. The names of the visible traces, which a step may change, are read out.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
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
        A plotly figure. Leave template, background and font colour alone: they follow the page. Sliders and menus
        have a name, by which the page calls them (:func:`slider`, :func:`menu`).
    name
        Identifier within the page, lower-case letters, digits and hyphens (``poles-map``).
    alt
        What the figure shows, in words, for a reader who cannot see or hover.

    Raises
    ------
    BookError
        If the name is not an identifier, or the description or a control's name is missing.
    """
    if not name or not all(c.isascii() and (c.islower() or c.isdigit() or c == "-") for c in name):
        raise BookError(f"interactive figure is named {name!r}; allowed: lower-case letters, digits and hyphens.")
    if len(alt.split()) < 4:
        raise BookError(f"interactive figure {name!r} has the description {alt!r}; say in words what it shows.")
    if not all(control.name for control in (*figure.layout.updatemenus, *figure.layout.sliders)):
        raise BookError(f"interactive figure {name!r} has a control without a name; say what it chooses.")
    if not publishing():
        return figure
    from IPython.display import HTML

    return HTML(page_html(figure.to_json(), name, alt, int(figure.layout.height or 460)))


def nothing_to_show(why: str) -> Figure:
    """A plotly figure that says why it is empty, for a study without what is drawn."""
    import plotly.graph_objects as go

    figure = go.Figure().add_annotation(text=why, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.update_layout(height=90, margin={"t": 10, "b": 10})


def slider(name: str, steps: Mapping[str, Sequence[Any]], active: int) -> dict[str, Any]:
    """A slider of a plotly figure: the label of each step, and what it gives ``restyle``. It starts at ``active``."""
    shown = [{"label": label, "method": "restyle", "args": list(args)} for label, args in steps.items()]
    return {"name": name, "currentvalue": {"prefix": f"{name} "}, "pad": {"t": 30}, "active": active, "steps": shown}


def menu(name: str, traces: Sequence[str], buttons: bool = False) -> dict[str, Any]:
    """A menu of a plotly figure that shows the traces of one kind at a time, first those of the first.

    ``traces`` says of each trace of the figure which kind it is of.
    """
    kinds = dict.fromkeys(traces)
    shown = [{"label": kind, "method": "restyle", "args": ["visible", [k == kind for k in traces]]} for kind in kinds]
    place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "direction": "right" if buttons else "down"}
    return {"name": name, "type": "buttons" if buttons else "dropdown", "buttons": shown, **place}


def steered(figure: Figure, height: int, *, menus: Sequence[Any] = (), sliders: Sequence[Any] = ()) -> Figure:
    """A plotly figure with its controls, and the legend that says what they change above it, beside the menus."""
    legend = {"x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
    controls = {"updatemenus": list(menus), "sliders": list(sliders)}
    return figure.update_layout(height=height, legend=legend, **controls)


def page_html(figure_json: str, name: str, alt: str, height: int) -> str:
    """The element of the published page: description, controls, empty box, and the figure's data."""
    plain = json.loads(figure_json)
    layout = plain.get("layout", {})
    # The page decides on these: they change between light and dark, narrow and wide.
    for key in ("template", "paper_bgcolor", "plot_bgcolor", "width"):
        layout.pop(key, None)
    steering = {kind: layout.pop(kind) for kind in ("updatemenus", "sliders") if layout.get(kind)}
    controls = [control for kind in steering.values() for control in kind]
    native = "".join(_control(control, f"{name}-{i}") for i, control in enumerate(controls))
    # "</" inside a script element would end it, whatever the quotes around it.
    data = json.dumps(
        {"data": plain["data"], "layout": layout, "controls": steering}, sort_keys=True, separators=(",", ":")
    )
    data = data.replace("</", "<\\/")
    description = html.escape(alt, quote=True)
    above = f'<div class="saema-controls" hidden>{native}<div class="saema-says"></div></div>' if controls else ""
    return (
        f'<div class="saema-interactive" id="{name}">{above}'
        f'<div class="saema-plot" role="group" tabindex="0" style="height:{height}px" '
        f'aria-roledescription="interactive figure" aria-label="{description}">'
        f'<p class="saema-plot-fallback">{description}</p></div>'
        f'<p class="saema-plot-reading" aria-live="polite"></p>'
        f'<script type="application/json">{data}</script></div>'
    )


def _control(control: Mapping[str, Any], identifier: str) -> str:
    """The native control that takes a slider's or a menu's steps; its values are their numbers."""
    label, active = html.escape(control["name"]), control.get("active", 0)
    labels = [html.escape(step["label"]) for step in control.get("steps") or control["buttons"]]
    # A browser that restored an old choice would show what the figure does not.
    facts = 'autocomplete="off"'
    if "steps" in control:
        return (
            f'<div><label for="{identifier}">{label}</label>'
            f'<input type="range" id="{identifier}" min="0" max="{len(labels) - 1}" value="{active}" '
            f'aria-valuetext="{labels[active]}" {facts}>'
            f'<output for="{identifier}" aria-live="off">{labels[active]}</output></div>'
        )
    if control.get("type") == "buttons":
        radio = f'<input type="radio" name="{identifier}" {facts}'
        each = "".join(
            f'<label>{radio} value="{i}"{" checked" * (i == active)}>{step}</label>' for i, step in enumerate(labels)
        )
        return f'<fieldset id="{identifier}"><legend>{label}</legend>{each}</fieldset>'
    each = "".join(f'<option value="{i}"{" selected" * (i == active)}>{step}</option>' for i, step in enumerate(labels))
    return f'<div><label for="{identifier}">{label}</label><select id="{identifier}" {facts}>{each}</select></div>'


def without_page(element: str) -> dict[str, Any] | None:
    """What a notebook shows in place of :func:`page_html` where there is no page; None for any other HTML.

    That is plotly's own figure, and its description where plotly is not known.
    """
    found = ELEMENT.search(element)
    if found is None:
        return None
    said, figure = f"{html.unescape(found[1])} (The book's page draws it.)", json.loads(found[2])
    figure["layout"] |= figure.pop("controls")
    return {"application/vnd.plotly.v1+json": figure, "text/html": f"<p>{html.escape(said)}</p>", "text/plain": said}
