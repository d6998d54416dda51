"""Prompts: words in sentences, and the reader's own file."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saema_utils.errors import ConceptError
from saema_utils.study import CONCEPT_NAMES, STUDIES
from saema_utils.text.concepts import TEMPLATES, WORDS, build_prompts, find_whole_word, read_prompts


def write(tmp_path, value) -> str:
    path = tmp_path / "prompts.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return str(path)


# ---- our own prompts ---------------------------------------------------------------------------


def test_every_concept_of_the_paper_has_words_and_eight_templates():
    assert set(WORDS) == set(TEMPLATES) == set(CONCEPT_NAMES)
    for concept in CONCEPT_NAMES:
        assert len(WORDS[concept]) >= 7
        assert len(set(WORDS[concept])) == len(WORDS[concept])
        assert len(set(TEMPLATES[concept])) == 8
        assert all(template.count("{}") == 1 for template in TEMPLATES[concept])


def test_words_stand_at_varied_places():
    for concept, templates in TEMPLATES.items():
        places = {template.index("{}") / (len(template) - 2) for template in templates}
        assert max(places) - min(places) > 0.4, concept


@pytest.mark.parametrize("templates", [1, 4, 8])
def test_each_word_stands_in_each_template_once(templates):
    for concept, found in build_prompts(STUDIES["smollm2-135m"].changed(templates=templates)).items():
        assert len(found) == len(WORDS[concept]) * templates
        assert found.words == WORDS[concept]
        assert len({prompt.text for prompt in found.prompts}) == len(found)
        for prompt in found.prompts:
            start, end = prompt.span
            assert prompt.concept == concept
            assert prompt.text[start:end] == prompt.word
            assert prompt.text == prompt.template.replace("{}", prompt.word)


def test_a_word_keeps_one_spelling():
    for concept, words in WORDS.items():
        if any(word.islower() for word in words):
            assert not any(template.startswith("{}") for template in TEMPLATES[concept]), concept


# ---- a file of prompts -------------------------------------------------------------------------


def test_a_file_replaces_the_templates(tmp_path):
    path = write(tmp_path, {"fruit": ["apple", "pear", "An apple a day.", "The pear is ripe."]})
    found = build_prompts(STUDIES["smoke"].changed(prompts_file=path))
    assert list(found) == ["fruit"]
    assert [prompt.word for prompt in found["fruit"].prompts] == ["apple", "pear", "apple", "pear"]
    assert found["fruit"].prompts[2].span == (3, 8)
    assert found["fruit"].prompts[3].template == "The {} is ripe."


def test_the_study_chooses_among_the_concepts_of_a_file_that_has_them_all(tmp_path):
    both = {"months": ["May", "June"], "days": ["Monday", "Friday"], "more": ["a", "b"]}
    study = STUDIES["smoke"].changed(prompts_file=write(tmp_path, both), concepts=["days", "months"])
    assert list(build_prompts(study)) == ["days", "months"]


def test_the_first_known_word_is_the_word(tmp_path):
    path = write(tmp_path, {"months": ["May", "April", "February", "May follows April.", "February follows May."]})
    assert [p.word for p in read_prompts(path)["months"].prompts[3:]] == ["May", "February"]


def test_of_words_that_begin_together_the_longest_wins(tmp_path):
    path = write(tmp_path, {"c": ["light", "light-blue", "blue", "A light-blue car.", "A light car."]})
    assert [p.word for p in read_prompts(path)["c"].prompts[3:]] == ["light-blue", "light"]


def test_words_match_whole_and_with_their_case(tmp_path):
    path = write(tmp_path, {"x": ["i", "ɪ", "ɪ", "This is i, said Iris.", "ɡɪ and then ɪ"]})
    prompts = read_prompts(path)["x"].prompts
    assert (prompts[3].word, prompts[3].span) == ("i", (8, 9))
    assert (prompts[4].word, prompts[4].span) == ("ɪ", (12, 13))


def test_a_file_without_bare_words_uses_the_words_known_for_the_concept(tmp_path):
    path = write(tmp_path, {"days": ["It was a Monday.", "Never on Sunday."]})
    assert read_prompts(path)["days"].words == ("Monday", "Sunday")


def test_a_prompt_without_a_known_word_is_its_own_word(tmp_path):
    path = write(tmp_path, {"proverbs": ["Haste makes waste.", "Still waters run deep."]})
    found = read_prompts(path)["proverbs"]
    assert found.words == ("Haste makes waste.", "Still waters run deep.")
    assert found.prompts[0].span == (0, 18)


def test_braces_in_a_prompt_are_only_text(tmp_path):
    path = write(tmp_path, {"code": ["set", "map", "a {} set", "{0} map {x}"]})
    prompts = read_prompts(path)["code"].prompts
    assert [p.text[slice(*p.span)] for p in prompts] == ["set", "map", "set", "map"]


@settings(deadline=None)
@given(
    st.text(string.ascii_letters + "ɪæ é", min_size=0, max_size=20),
    st.text(string.ascii_letters + "ɪæ", min_size=1, max_size=6),
    st.text(string.ascii_letters + "ɪæ é", min_size=0, max_size=20),
)
def test_a_word_between_spaces_is_always_found(before, word, after):
    text = f"{before} {word} {after}"
    start = find_whole_word(text, word)
    assert 0 <= start <= len(before) + 1
    assert text[start : start + len(word)] == word


def test_a_combining_mark_belongs_to_its_letter():
    assert find_whole_word("e\u0301t e", "e") == 4


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "a list, not an object"),
        ("{}", "no concept"),
        ({"months": "May"}, "a str; allowed: a list"),
        ({"months": {}}, "a dict; allowed: a list"),
        ({"months": []}, "has no prompts"),
        ({"months": ["May", 5]}, "prompt 2"),
        ({"months": ["May", None]}, "NoneType"),
        ({"months": ["May", "  "]}, "blank"),
        ({"months": ["May", "Ju\tne"]}, "control character '\\t'"),
        ({"months": ["May", "Ju\x00ne"]}, "control character '\\x00'"),
        ('{"months": ["May", "\\ud800"]}', "control character '\\ud800'"),
        ({"months": ["May", "x" * 2001]}, "2001 characters"),
        ({"months": ["May", "May"]}, "only one distinct word"),
        ({"../up": ["a", "b"]}, "unusable name"),
        ({"a/b": ["a", "b"]}, "unusable name"),
        ({"": ["a", "b"]}, "unusable name"),
        ({"None": ["a", "b"]}, "unusable name"),
        ({"7": ["a", "b"]}, "unusable name"),
        ('{"a": ["x", "y"], "a": ["x", "z"]}', "'a' is named twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_of_another_shape_is_refused_in_one_line(tmp_path, content, said):
    with pytest.raises(ConceptError) as caught:
        read_prompts(write(tmp_path, content))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path):
    with pytest.raises(ConceptError, match="No such file"):
        read_prompts(tmp_path / "nowhere.json")
    with pytest.raises(ConceptError, match="not a file"):
        read_prompts(tmp_path)
    huge = tmp_path / "huge.json"
    huge.write_bytes(b" " * 10_000_001)
    with pytest.raises(ConceptError, match="10,000,001 bytes"):
        read_prompts(huge)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes('{"a": ["é", "ü"]}'.encode("latin-1"))
    with pytest.raises(ConceptError, match="not JSON"):
        read_prompts(path)
