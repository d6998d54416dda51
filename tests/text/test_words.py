"""Where a word stands in a sentence, in whatever form it is written there."""

from __future__ import annotations

import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saema_utils.text.words import EXACT, Vocabulary, find_anywhere, find_whole_word

letters = st.text(string.ascii_letters + "ɪæ é", min_size=0, max_size=20)


def written(words: list[str], text: str) -> tuple[str, str] | None:
    """The word that is found, and how it is written in the text."""
    match = Vocabulary(words).find(text)
    return None if match is None else (match.word, text[match.start : match.end])


@settings(deadline=None)
@given(letters, st.text(string.ascii_letters + "ɪæ", min_size=1, max_size=6), letters)
def test_a_word_between_spaces_is_always_found(before, word, after):
    text = f"{before} {word} {after}"
    start = find_whole_word(text, word)
    assert 0 <= start <= len(before) + 1
    assert text[start : start + len(word)] == word
    match = Vocabulary([word]).find(text)
    assert (match.start, match.end) == (start, start + len(word))


@settings(deadline=None)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=6))
def test_a_match_lies_in_the_text_and_reads_as_its_word(text, words):
    match = Vocabulary(words).find(text)
    if match is not None:
        assert 0 <= match.start < match.end <= len(text)
        assert match.word in words
    exact = Vocabulary(words).find(text, EXACT)
    assert exact is None or match is not None


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@given(text=st.text("aeinouáçëñöşışğéβя ", max_size=20))
def test_any_normal_form_of_a_word_is_found_and_its_place_is_exact(form, text):
    word = "Çeşme"
    here = unicodedata.normalize(form, f"{text} {word} {text}")
    match = Vocabulary([word]).find(here)
    assert unicodedata.normalize("NFC", here[match.start : match.end]) == word


def test_a_combining_mark_belongs_to_its_letter():
    assert find_whole_word("e\u0301t e", "e") == 4
    assert written(["e"], "e\u0301 t") is None


@pytest.mark.parametrize(
    ("word", "text", "as_written"),
    [
        ("Monday", "Ｍｏｎｄａｙ is full.", "Ｍｏｎｄａｙ"),
        ("カタカナ", "これはｶﾀｶﾅです", "ｶﾀｶﾅ"),
        ("ガイド", "ｶﾞｲﾄﾞです", "ｶﾞｲﾄﾞ"),
        ("한국", unicodedata.normalize("NFD", "한국 사람"), unicodedata.normalize("NFD", "한국")),
        ("Hong Kong", "In Hong\u00a0 Kong.", "Hong\u00a0 Kong"),
        ("O'Neill", "Ask O’Neill.", "O’Neill"),
        ("Marie-Claire", "Ask Marie‑Claire.", "Marie‑Claire"),
        ("Marie-Claire", "MARIE-CLAIRE's", "MARIE-CLAIRE"),
        ("Sunday", "Sun\u00adday rest", "Sun\u00adday"),
        ("Straße", "DIE STRASSE", "STRASSE"),
        ("office", "The oﬃce.", "oﬃce"),
        ("İzmir", "İZMİR'de", "İZMİR"),
        ("İzmir", "izmir'de", "izmir"),
        ("Isparta", "ısparta", "ısparta"),
        ("C++", "I know C++.", "C++"),
        ("a.b|c", "So a.b|c it is", "a.b|c"),
        ("(x)", "f(x) or (x)", "(x)"),
        ("glass", "Two glasses.", "glasses"),
        ("berry", "Berries!", "Berries"),
        ("toy", "Toys.", "Toys"),
        ("tomato", "tomatoes", "tomatoes"),
        ("day", "A day’s work", "day"),
        ("cat", "The cats' home", "cats"),
        ("café", "Deux CAFÉS", "CAFÉS"),
        ("มกราคม", "เดือนมกราคมหนาว", "มกราคม"),
        ("五月", "去年五月下雨", "五月"),
        ("Linux", "我用Linux写字", "Linux"),
    ],
)
def test_other_forms_of_a_word_are_found(word, text, as_written):
    assert written([word], text) == (word, as_written)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("Montag", "Am Montagmorgen"),
        ("среда", "Мы ждём среду"),
        ("I", "i and is"),
        ("A", "As a rule"),
        ("ox", "oxen, oxs"),
        ("C++", "C+ and CC"),
        ("a.c", "abc"),
        ("May", "Maybe Mayor"),
        ("toy", "toies"),
        ("ma", "mas"),
        ("x", "x_1 and 2x"),
        ("カ", "カ\u3099"),
    ],
)
def test_other_words_are_not(word, text):
    assert written([word], text) is None


def test_the_strictest_way_of_reading_decides_and_then_the_first_place():
    assert written(["Rose", "Iris"], "rose, then Iris") == ("Iris", "Iris")
    assert written(["Rose", "Iris"], "rose, then iris") == ("Rose", "rose")
    assert written(["Mar", "Mars"], "On Mars") == ("Mars", "Mars")


def test_the_longest_wins_also_where_only_it_is_in_another_form():
    assert written(["Delhi", "New Delhi"], "NEW Delhi") == ("New Delhi", "NEW Delhi")
    assert written(["Delhi", "New Delhi"], "New\u00a0Delhi and Delhi") == ("New Delhi", "New\u00a0Delhi")
    assert written(["Delhi", "New Delhi"], "Delhi, not New Delhi") == ("Delhi", "Delhi")


def test_two_forms_of_one_word_are_one_word():
    composed, decomposed = "Ångström", unicodedata.normalize("NFD", "Ångström")
    assert Vocabulary([composed, decomposed]).find(decomposed).word == composed
    assert Vocabulary([decomposed, composed]).find(composed).word == decomposed


def test_a_word_that_is_said_is_found_inside_a_longer_one():
    match = find_anywhere("Am Montagmorgen", "Montag")
    assert (match.start, match.end) == (3, 9)
    assert find_anywhere("MONTAGMORGEN", "Montag").start == 0
    assert find_anywhere("Am Morgen", "Montag") is None


def test_one_of_many_words_is_found_in_a_long_text():
    words = Vocabulary([f"word{i}x y" if i % 2 else f"name{i}" for i in range(2500)])
    for i in range(100):
        assert words.find(f"{'some text of no use ' * 50}name{2 * i}").word == f"name{2 * i}"
