"""A picture of what is made from what, drawn from the registry: one band a chapter, lines from left to right."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import networkx

COLUMN, ROW, BOX = 1.95, 0.23, 1.4  # inches


def graph_of_results() -> networkx.DiGraph:
    """Every declared result by name, with its chapter; edges lead to what is made from it.

    Parts of a table, and the tensors beside one, have its name and are one node with it.
    """
    import networkx

    from saema_utils.chapters import declared_results

    graph = networkx.DiGraph()
    for result in declared_results().values():
        name = _name(result.name)
        graph.add_node(name, chapter=result.chapter)
        graph.add_edges_from((_name(need.name), name) for need in result.needs if _name(need.name) != name)
    return graph


def _name(name: str) -> str:
    return name.rpartition("/")[2]


def draw_results(graph: networkx.DiGraph, file: Path) -> None:
    """Write the picture as SVG. A line that only repeats what a chain of others says is left out."""
    import matplotlib
    import networkx
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path

    drawn = networkx.transitive_reduction(graph)
    chapters = sorted(set(networkx.get_node_attributes(graph, "chapter").values()))
    column = {name: x for x, names in enumerate(networkx.topological_generations(graph)) for name in sorted(names)}
    places, bands, top = {}, {}, 0.0
    for chapter in chapters:
        names = sorted(name for name in graph if graph.nodes[name]["chapter"] == chapter)
        filled: Counter[int] = Counter()
        for name in names:
            places[name] = (column[name] * COLUMN, top + (filled[column[name]] + 0.5) * ROW)
            filled[column[name]] += 1
        bands[chapter] = (top, top + max(filled.values()) * ROW)
        top = bands[chapter][1] + 0.6 * ROW
    width = max(column.values()) * COLUMN + BOX
    figure = Figure(figsize=(width + 1.1, top))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, width + 0.1), ylim=(top - 0.3 * ROW, -0.3 * ROW))
    axes.axis("off")
    colours = dict(zip(chapters, matplotlib.colormaps["tab10"].colors, strict=False))
    for chapter, (above, below) in bands.items():
        axes.axhspan(above - 0.2 * ROW, below + 0.2 * ROW, color=colours[chapter], alpha=0.08, linewidth=0)
        axes.text(-0.9, (above + below) / 2, f"Chapter {chapter}", va="center", fontsize=9, color="#333333")
    for source, target in drawn.edges:
        (x0, y0), (x1, y1) = places[source], places[target]
        points = [(x0 + BOX, y0), (x0 + BOX + 0.25, y0), (x1 - 0.25, y1), (x1, y1)]
        line = Path([*points], [Path.MOVETO, *[Path.CURVE4] * 3])
        colour = colours[graph.nodes[source]["chapter"]]
        axes.add_patch(PathPatch(line, facecolor="none", edgecolor=colour, linewidth=0.8, alpha=0.6))
    for name, (x, y) in places.items():
        corner, shape = (x, y - 0.36 * ROW), "round,pad=0,rounding_size=0.05"
        box = FancyBboxPatch(corner, BOX, 0.72 * ROW, boxstyle=shape, facecolor="white", linewidth=0.9, zorder=2)
        box.set_edgecolor(colours[graph.nodes[name]["chapter"]])
        axes.add_patch(box)
        axes.text(x + 0.06, y, name[3:].replace("_", " "), va="center", fontsize=8, color="#111111")
    with matplotlib.rc_context({"svg.hashsalt": file.stem}):
        figure.savefig(file, metadata={"Date": None})
