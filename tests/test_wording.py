"""Numbers and names as pages show them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from saema_utils.chapters import declared_results
from saema_utils.chapters.columns import COMMON
from saema_utils.notebook import table
from saema_utils.wording import HEADINGS, format_number, heading, in_words, true_minus


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.79312, "0.793"), (160_000, "160,000"), (-12.0, "−12"), (1e-5, "1.0 × 10⁻⁵"), (float("nan"), "undefined"),
     ("months", "months"), (True, "True"), (12345.6, "12,346"), (0.0, "0"), (float("inf"), "infinity")],
)  # fmt: skip
def test_numbers_are_formatted_for_reading(value, shown):
    assert format_number(value) == shown


def cells(html: str) -> list[str]:
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", html, re.S)]


def test_a_table_speaks_in_words_and_keeps_the_name_of_the_data_above_its_headings():
    frame = pd.DataFrame({"control": ["random_dictionary", "a_b c"], "p_holm": [1e-6, -0.0], "latent": [12345, 3]})
    html = table(frame.assign(measured=[True, False], n=np.array([12345, 1]))).data
    said = cells(html)
    assert said[:5] == ["control", "p, corrected", "latent", "measured", "n"]
    assert said[5:] == ["random dictionary", "1.0 × 10⁻⁶", "12345", "yes", "12,345", "a_b c", "0", "3", "no", "1"]
    assert [re.search(f"title='{name}'", html) is not None for name in ("p_holm", "measured")] == [True, True]


def test_no_heading_is_for_a_column_that_no_table_has():
    columns = set(COMMON) | {name for result in declared_results().values() for name in result.columns}
    by_pages = {"ami_family", "gain", "homogeneity_truth", "n_tokens", "q", "alpha", "i_squared"}
    assert set(HEADINGS) - columns - by_pages == set()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("-0.3 (-.5 to 2)", "−0.3 (−.5 to 2)"), ("1990-05, x-2, --3", "1990-05, x-2, --3"), ("[-1, -2]", "[−1, −2]")],
)
def test_a_hyphen_is_a_minus_where_a_number_begins(text, shown):
    assert true_minus(text) == shown


def test_words_are_words():
    assert not [name for name in HEADINGS if "_" in heading(name)]
    assert (in_words("mst_weight_scale_free"), in_words("«a_b»")) == ("tree weight, scale-free", "«a_b»")
