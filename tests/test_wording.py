"""Numbers and names as pages show them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from saema_utils.chapters import declared_results
from saema_utils.chapters.columns import COMMON
from saema_utils.evidence.verdicts import VERDICTS
from saema_utils.notebook import JUDGED, ROWS_IN_SIGHT, finding, table
from saema_utils.wording import HEADINGS, SIGNS, format_number, heading, in_prose, in_words, signed


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.79312, "0.793"), (160_000, "160,000"), (-12.0, "−12"), (1e-5, "1.0\xa0×\xa010⁻⁵"), (float("nan"), "undefined"),
     ("months", "months"), (True, "True"), (999.7, "1,000"), (12345.6, "12,346"), (0.0, "0"),
     (float("inf"), "infinity")],
)  # fmt: skip
def test_numbers_are_formatted_for_reading(value, shown):
    assert format_number(value) == shown


def test_two_digits_of_a_large_number_need_no_exponent():
    assert [format_number(value, 2) for value in (777.4, 99.97, 12.34)] == ["777", "100", "12"]


def test_a_p_value_is_as_small_as_it_is_and_a_measure_zero_but_for_rounding():
    said = cells(table(pd.DataFrame({"p": [7e-20], "joint_p": [3e-14], "sphere": [7e-20]})).data)
    assert said[3:] == ["7.0\xa0×\xa010⁻²⁰", "3.0\xa0×\xa010⁻¹⁴", "0"]


def cells(html: str) -> list[str]:
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", html, re.S)]


def test_a_table_speaks_in_words_and_keeps_the_name_of_the_data_above_its_headings():
    frame = pd.DataFrame({"control": ["random_dictionary", "a_b c"], "p_holm": [1e-6, -0.0], "latent": [12345, 3]})
    html = table(frame.assign(measured=[True, False], n=np.array([12345, 1]))).data
    said = cells(html)
    assert said[:5] == ["control", "p, corrected", "latent", "measured", "n"]
    assert said[5:] == ["random dictionary", "1.0\xa0×\xa010⁻⁶", "12345", "yes", "12,345", "a_b c", "0", "3", "no", "1"]
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
    assert in_prose(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.00 (-0.07 to +0.06)", "0.00 (−0.07 to +0.06)"),
        ("+0.00 · -0 · -0%", "0.00 · 0 · 0~%"),
        ("-0.001, -0.05, +0.003", "−0.001, −0.05, +0.003"),
        ("noise 1e-05, 8.8e-06, -6.9e-05", "noise 10⁻⁵, 8.8~×~10⁻⁶, −6.9~×~10⁻⁵"),
        ("95 %, 98.8%, 12 min, 2.1 GiB, to 1 RMS", "95~%, 98.8~%, 12~min, 2.1~GiB, to 1~RMS"),
        ("× 1.01, 12 minutes, 3 hits, v1e-5x", "×~1.01, 12 minutes, 3 hits, v1e-5x"),
    ],
)
def test_numbers_in_prose_are_written_in_one_way_and_stay_with_their_units(text, shown):
    written = in_prose(text)
    assert written.replace("\xa0", "~") == shown
    assert in_prose(written) == written, "what is written so stays so"


def test_a_finding_writes_its_numbers_as_prose_and_names_in_words():
    assert (
        "*random dictionary 0.00 (−0.07\xa0to\xa0+0.06)*"
        in finding("A.", holds=True, shows="random_dictionary -0.00 (-0.07 to +0.06)").data
    )


def test_every_verdict_has_its_sign_beside_its_word():
    for verdict in VERDICTS:
        assert signed(verdict) == f"{SIGNS[verdict]}\xa0{verdict}"


JUDGEMENTS = pd.DataFrame(
    {
        "protocol": ["paper", "paper", "direct"],
        "measure": ["n_local", "ami", "ami"],
        "against": ["pca"] * 3,
        "estimate": [0.1, -0.2, 0.3],
        "change": ["lower", "higher", "unclear"],
    }
)


def test_what_judges_stands_behind_what_tells_the_rows_apart():
    html = table(JUDGEMENTS).data
    assert cells(html)[:5] == ["protocol", "measure", "change", "against", "estimate"]
    assert cells(html)[5:10] == ["paper", "clusters", "↓\xa0lower", "PCA", "0.1"]
    alike = JUDGEMENTS.assign(measure="ami")
    assert cells(table(alike).data)[:5] == ["protocol", "measure", "against", "change", "estimate"]


def test_a_column_that_only_sounds_as_if_it_judged_stays_where_it_is():
    html = table(JUDGEMENTS.assign(change=["k", "width", "k"])).data
    assert cells(html)[4] == "change"
    assert "change" in JUDGED


@pytest.mark.parametrize(("rows", "folded"), [(0, 0), (12, 0), (13, 1), (40, 28)])
def test_of_a_long_table_a_dozen_rows_are_in_sight_and_the_others_fold(rows, folded):
    html = table(pd.DataFrame({"word": [f"w{n}" for n in range(rows)]})).data
    sight, _, below = html.partition("<details>")
    assert sight.count("<td") == min(rows, ROWS_IN_SIGHT)
    assert below.count("<td") == folded
    if folded > 1:
        assert f"<summary>{folded} more rows</summary>" in below
    assert html.count("<table") == html.count("</table>") == html.count("<thead>") == 1 + bool(folded)


def test_every_cell_knows_its_heading():
    html = table(pd.DataFrame({"p_holm": [0.5, 1.0], "word": ["it's", "<b>"]})).data
    assert re.findall("<td data-label='(.*?)'", html) == ["p, corrected", "word"] * 2
    assert "it&#x27;s" in html
    assert "<b>" not in html


def test_a_remark_has_a_column_only_where_something_is_remarked():
    frame = pd.DataFrame({"n": [1, 2], "reason": [None, None]})
    assert cells(table(frame).data)[0:1] == ["n"]
    assert "reason" not in table(frame).data
    assert "one concept" in table(frame.assign(reason=[None, "one concept"])).data


def test_a_table_can_stand_inside_a_page():
    """A blank line ends HTML inside Markdown; text of tokens has them."""
    html = table(pd.DataFrame({"token": ["a\n\nb", "\n"]}), "caption").data
    assert "\n\n" not in html
    assert "\n\n" not in table(pd.DataFrame({"token": []})).data


def test_words_are_words():
    assert not [name for name in HEADINGS if "_" in heading(name)]
    assert (in_words("mst_weight_scale_free"), in_words("«a_b»")) == ("tree weight, scale-free", "«a_b»")
