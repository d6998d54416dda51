"""Colours that stay apart for readers who see fewer of them."""

from __future__ import annotations

from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from saema_utils.figures import (
    CLASS_COLORS,
    CLASS_MARKERS,
    COLORS,
    CYCLIC,
    DIVERGING,
    MAIN,
    PLOTLY_SYMBOLS,
    SEQUENTIAL,
    TOWARDS_CLAIM,
    class_style,
    keep_apart,
    line_style,
    note_missing,
    panels,
    says_if_empty,
    span,
    write_beside,
)

# Machado, Oliveira and Fernandes 2009, full severity, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TOGETHER = {
    "representations": ("residual", "sae", "reconstruction", "pca", "random_dictionary", "shuffled"),
    "arms": ("poles", "random_direction", "permuted_labels", "global_scaling"),
    "verdicts": ("sae", "accent", "muted"),
}
# CIE76; 2.3 is just noticeable. Under 20, two lines need something else to tell them apart as well.
CLEAR, DISTINCT = 20, 10


def lab(name: object, deficiency: str) -> np.ndarray:
    srgb = np.array(to_rgb(COLORS.get(name, name)))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (np.array(DEFICIENCIES[deficiency]) @ linear).clip(0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    t = np.array(to_xyz) @ seen / (0.95047, 1.0, 1.08883)
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_simulation_brings_red_and_green_together():
    full, seen = (
        np.linalg.norm(lab("accent", how) - lab("random_dictionary", how)) for how in ("none", "deuteranopia")
    )
    assert seen < 0.8 * full


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("group", TOGETHER)
def test_colours_that_stand_together_stay_apart(group, deficiency):
    for a, b in combinations(TOGETHER[group], 2):
        distance = np.linalg.norm(lab(a, deficiency) - lab(b, deficiency))
        assert distance > DISTINCT, f"{a} and {b} look alike under {deficiency}: {distance:.0f}"
        if group != "verdicts" and {a, b} & set(MAIN):  # what is studied against its controls
            dashes = line_style(a)["linestyle"] != line_style(b)["linestyle"]
            assert distance > CLEAR or dashes, f"{a} and {b} differ in hue only, and little, under {deficiency}"


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_of_clusters_and_words_stay_apart_and_from_noise(deficiency):
    for a, b in combinations((*CLASS_COLORS, COLORS["muted"]), 2):
        distance = np.linalg.norm(lab(a, deficiency) - lab(b, deficiency))
        assert distance > DISTINCT, f"{a} and {b} look alike under {deficiency}: {distance:.0f}"


@pytest.mark.parametrize(("page", "least"), [("#ffffff", 2), ("#121212", 3)])
def test_colours_of_classes_show_on_a_light_page_and_on_a_dark_one(page, least):
    """WCAG's contrast of luminances; interactive figures have no ground of their own."""

    def luminance(name: str) -> float:
        srgb = np.array(to_rgb(name))
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for color in CLASS_COLORS:
        light, dark = sorted((luminance(color), luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > least, color


def test_more_classes_than_colours_differ_in_their_marker():
    styles = [class_style(i) for i in range(len(CLASS_COLORS) * len(CLASS_MARKERS))]
    assert len(set(styles)) == len(styles) >= 30
    assert len(PLOTLY_SYMBOLS) == len(CLASS_MARKERS)
    assert class_style(len(styles)) == styles[0]


def along(name: str, n: int) -> list[tuple[float, ...]]:
    return [matplotlib.colormaps[name](x)[:3] for x in np.linspace(0, 1, n)]


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_of_scales_keep_their_order(deficiency):
    """Sequential: lightness rises. Diverging: both ends differ from each other and the middle. Cyclic: half a turn."""
    lightness = [lab(color, deficiency)[0] for color in along(SEQUENTIAL, 9)]
    assert lightness == sorted(lightness)
    for name in (DIVERGING, TOWARDS_CLAIM):
        for a, b in combinations(along(name, 3), 2):
            assert np.linalg.norm(lab(a, deficiency) - lab(b, deficiency)) > CLEAR, name
    turn = [lab(color, deficiency) for color in along(CYCLIC, 13)[:-1]]
    for i in range(6):
        assert np.linalg.norm(turn[i] - turn[i + 6]) > CLEAR


def test_the_span_of_numbers_leaves_out_what_is_missing_and_is_never_empty():
    nan = float("nan")
    assert span([1.0, nan], 3.0, around=[2]) == (1.0, 3.0)
    assert span([nan]) == span() == (0.0, 1.0)
    low, high = span([2.0, nan, 2.0])
    assert low < 2 < high


@pytest.mark.parametrize(
    ("estimate", "low", "says"),
    [
        ([1.0, 2.0], [0.5, 1.5], []),
        ([1.0, 2.0], [np.nan, 1.5], ["1 of 2 without interval"]),
        ([1.0, 2.0], [np.nan, np.nan], ["no interval: one concept"]),
        ([np.nan, 2.0], [np.nan, np.nan], ["1 of 2 without value, no interval: one concept"]),
        ([np.nan, np.nan], [np.nan, np.nan], ["no value"]),
    ],
)
def test_a_panel_notes_what_its_rows_lack(estimate, low, says):
    _, axes = panels()
    note_missing(axes, pd.DataFrame({"estimate": estimate, "low": low, "high": low}), why="one concept")
    assert [text.get_text() for text in axes.texts] == says


def test_a_figure_without_rows_says_why():
    @says_if_empty("Nothing here.", known="y")
    def drawn(table):
        return table

    table = pd.DataFrame({"y": [1.0, np.nan]})
    assert drawn(table)["y"].tolist() == [1.0]
    for empty in (table[:0], table[1:]):
        assert [text.get_text() for text in drawn(empty).axes[0].texts] == ["Nothing here."]


def crowded(seed: int, spread: float):
    """Twelve words beside points within ``spread`` of the middle of a panel."""
    figure, axes = panels(width=3, height=3)
    points = 0.5 + spread * (np.random.default_rng(seed).random((12, 2)) - 0.5)
    axes.scatter(*points.T, s=20)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    write_beside(axes, [f"word{i}" for i in range(12)], points, points - points.mean(0))
    return figure, axes, points


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.8])
def test_words_beside_points_stand_apart_from_each_other_and_off_the_points(seed, spread):
    figure, axes, points = crowded(seed, spread)
    keep_apart(figure)
    figure.draw_without_rendering()
    words = [text for text in axes.texts if text.get_text()]
    boxes = [Text.get_window_extent(word) for word in words]
    assert [(a, b) for a, b in combinations(range(12), 2) if boxes[a].overlaps(boxes[b])] == []
    dots = axes.transData.transform(points)
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    assert all(axes.bbox.padded(1).contains(*corner) for box in boxes for corner in box.corners())
    again, same, _ = crowded(seed, spread)
    keep_apart(again)
    assert [text.get_position() for text in same.texts] == [text.get_position() for text in axes.texts]


def test_a_word_with_room_stays_where_it_was_put_and_one_without_has_a_line_to_its_point():
    for points, lines in ((np.array([[0.1, 0.5], [0.9, 0.5]]), 0), (np.full((12, 2), 0.5), 6)):
        figure, axes = panels(width=3, height=3)
        axes.scatter(*points.T)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        write_beside(axes, ["here"] * len(points), points, np.tile([0, 1], (len(points), 1)))
        before = [text.get_position() for text in axes.texts]
        keep_apart(figure)
        assert sum(text.arrow_patch is not None for text in axes.texts) >= lines
        assert lines or [text.get_position() for text in axes.texts] == before
