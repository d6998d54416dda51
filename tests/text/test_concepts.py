"""Prompts: words in sentences, and the reader's own file."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path

import pytest

from saema_utils.errors import ConceptError
from saema_utils.study import CONCEPT_NAMES, STUDIES
from saema_utils.text.concepts import (
    TEMPLATES,
    WORDS,
    ConceptPrompts,
    authors_concepts,
    authors_prompts,
    build_prompts,
    read_prompts,
)


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


def test_the_authors_prompts_have_the_words_they_always_had():
    """What the tables of chapters 6 and 7 are made from: the first word of its concept that a prompt names."""
    spans = []
    for concept, found in authors_concepts().items():
        texts = authors_prompts()[concept]
        assert [prompt.text for prompt in found.prompts] == texts
        assert not found.remarks
        bare = {text for text in texts if " " not in text}
        for prompt in found.prompts:
            padded = "".join(c if c.isalnum() else " " for c in prompt.text).split()
            assert prompt.word == prompt.written == next(part for part in padded if part in bare)
            spans.append([prompt.text, prompt.word, prompt.template, prompt.concept, *prompt.span])
    assert hashlib.sha256(json.dumps(spans).encode()).hexdigest()[:16] == "6e93e582c302d8f6"


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


def test_braces_in_a_prompt_are_only_text(tmp_path):
    path = write(tmp_path, {"code": ["set", "map", "a {} set", "{0} map {x}"]})
    prompts = read_prompts(path)["code"].prompts
    assert [p.text[slice(*p.span)] for p in prompts] == ["set", "map", "set", "map"]


# ---- what may stand for a word -----------------------------------------------------------------


def found_in(tmp_path, prompts, concept: str = "mine") -> ConceptPrompts:
    return read_prompts(write(tmp_path, {concept: prompts}))[concept]


def words_of(found: ConceptPrompts) -> dict[str, tuple[str, str]]:
    """By text: the word, and how it is written there."""
    return {prompt.text: (prompt.word, prompt.text[slice(*prompt.span)]) for prompt in found.prompts}


def test_a_prompt_without_a_known_word_is_left_out_and_named(tmp_path):
    found = found_in(tmp_path, ["oak", "elm", "An oak fell.", "Nothing happened.", "Nobody came."])
    assert [prompt.text for prompt in found.prompts] == ["oak", "elm", "An oak fell."]
    assert found.left_out == ("Nothing happened.", "Nobody came.")
    (remark,) = found.remarks
    assert "2 of 5" in remark
    assert "'Nothing happened.', 'Nobody came.'" in remark
    assert '"word"' in remark
    assert "\n" not in remark


def test_sentences_never_pass_for_words(tmp_path):
    for sentences in (
        ["Haste makes waste.", "Still waters run deep."],
        ["Birds fly", "Dogs bark"],
        ["I sleep well", "I sleep badly", "I sleep badly today"],
        ["我今天很高兴。", "他明天不上班。"],
        ["我今天很高兴", "他明天不上班"],
    ):
        with pytest.raises(ConceptError, match=r"no word that was found; allowed: two or more.*\"words\""):
            found_in(tmp_path, sentences)
    with pytest.raises(ConceptError, match=r"only one distinct word \('oak'\).*'The elm tree stood.'"):
        found_in(tmp_path, ["oak", "An oak fell.", "The elm tree stood."])


def test_names_of_several_words_are_found_in_sentences(tmp_path):
    prompts = [
        "Cape Town",
        "Addis Ababa",
        "We fly to Cape Town.",
        "Addis Ababa is high up.",
        "port of call",
        "A port of call.",
    ]
    assert words_of(found_in(tmp_path, prompts)) == {
        "Cape Town": ("Cape Town", "Cape Town"),
        "Addis Ababa": ("Addis Ababa", "Addis Ababa"),
        "We fly to Cape Town.": ("Cape Town", "Cape Town"),
        "Addis Ababa is high up.": ("Addis Ababa", "Addis Ababa"),
        "port of call": ("port of call", "port of call"),
        "A port of call.": ("port of call", "port of call"),
    }


def test_of_a_name_inside_another_the_longer_wins(tmp_path):
    prompts = [
        "Guinea",
        "Papua New Guinea",
        "Guinea is west of here.",
        "They left Papua New Guinea.",
        "PAPUA NEW GUINEA WINS",
    ]
    words = [prompt.word for prompt in found_in(tmp_path, prompts).prompts]
    assert words == ["Guinea", "Papua New Guinea", "Guinea", "Papua New Guinea", "Papua New Guinea"]
    prompts = ["pie", "apple pie", "The apple pie is gone.", "Apple pie for all.", "A pie."]
    words = [prompt.word for prompt in found_in(tmp_path, prompts).prompts]
    assert words == ["pie", "apple pie", "apple pie", "apple pie", "pie"]


def test_names_in_other_forms_stand_inside_sentences_too(tmp_path):
    decomposed = unicodedata.normalize("NFD", "São Tomé")
    found = found_in(tmp_path, [decomposed, "Cabo Verde", "We left São Tomé.", "Cabo\u00a0Verde is dry."])
    assert found.words == (decomposed, "Cabo Verde")
    assert [prompt.written for prompt in found.prompts[2:]] == ["São Tomé", "Cabo\u00a0Verde"]
    found = found_in(tmp_path, ["水曜日", "ｶﾚﾝﾀﾞｰ", "水曜日に会う。", "カレンダーを見る。"])
    assert [prompt.word for prompt in found.prompts] == ["水曜日", "ｶﾚﾝﾀﾞｰ"] * 2


def test_a_prompt_that_another_continues_is_no_name(tmp_path):
    prompts = ["warm", "cold", "It feels warm", "It feels warm again", "It feels cold", "Today it feels cold"]
    assert found_in(tmp_path, prompts).words == ("warm", "cold")


def test_a_word_and_a_full_stop_are_no_other_word(tmp_path):
    prompts = ["cat", "dog", "CAT!", "Dogs.", "Yahoo!", "U.S.", "Washington D.C.", "In Washington D.C. now"]
    words = [prompt.word for prompt in found_in(tmp_path, prompts).prompts]
    assert words == ["cat", "dog", "cat", "dog", "Yahoo!", "U.S.", "Washington D.C.", "Washington D.C."]
    assert found_in(tmp_path, ["Monday.", "Tuesday."], "days").words == ("Monday", "Tuesday")


def test_a_name_that_no_sentence_holds_is_taken_and_named(tmp_path):
    found = found_in(tmp_path, ["Addis Ababa", "Cape Town", "We left Addis Ababa."])
    assert found.words == ("Addis Ababa", "Cape Town")
    assert "'Cape Town'" in found.remarks[0]
    assert found_in(tmp_path, ["fig", "pear", "star fruit", "A fig fell."]).left_out == ("star fruit",)
    assert not found_in(tmp_path, ["fig", "star fruit"]).remarks  # a list of names


def test_a_word_of_the_package_comes_before_one_of_other_capitals(tmp_path):
    found = found_in(tmp_path, ["May", "June", "It may rain in April.", "it may snow"], "months")
    assert [prompt.word for prompt in found.prompts] == ["May", "June", "April", "May"]
    (remark,) = found.remarks
    assert "'may' for 'May' in 'it may snow'" in remark


def test_plurals_and_possessives_of_the_packages_words_are_found(tmp_path):
    found = found_in(tmp_path, ["Nobody works Sundays.", "Friday's child", "FRIDAY'S CHILD"], "days")
    assert words_of(found) == {
        "Nobody works Sundays.": ("Sunday", "Sundays"),
        "Friday's child": ("Friday", "Friday"),
        "FRIDAY'S CHILD": ("Friday", "FRIDAY"),
    }
    assert found.prompts[0].template == "Nobody works {}."


def test_german_compounds_are_other_words_and_umlauts_one_letter_however_composed(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Das Mädchen übt.")
    found = found_in(tmp_path, ["Mädchen", "Junge", decomposed, "Der Junge übt.", "Die Mädchenschule"])
    assert found.prompts[2].word == "Mädchen"
    assert found.prompts[2].written == unicodedata.normalize("NFD", "Mädchen")
    assert found.left_out == ("Die Mädchenschule",)
    both = ["Mädchen", unicodedata.normalize("NFD", "Mädchen"), "Junge"]
    assert found_in(tmp_path, both).words == ("Mädchen", "Junge")  # one word, not two


def test_russian_cases_that_are_not_found_are_named(tmp_path):
    found = found_in(tmp_path, ["кошка", "собака", "Кошка спит.", "Я вижу собаку.", "Вот собака."])
    assert [prompt.word for prompt in found.prompts] == ["кошка", "собака", "кошка", "собака"]
    assert found.left_out == ("Я вижу собаку.",)
    assert "'Я вижу собаку.'" in found.remarks[0]


def test_days_in_chinese_are_found_without_spaces(tmp_path):
    prompts = ["星期四", "星期五", "我们星期四开会。", "星期五晚上见", "今天天气很好。"]
    found = found_in(tmp_path, prompts)
    assert [prompt.word for prompt in found.prompts] == ["星期四", "星期五", "星期四", "星期五"]
    assert found.prompts[2].span == (2, 5)
    assert found.left_out == ("今天天气很好。",)


# ---- words that the file tells -----------------------------------------------------------------


def test_the_word_of_a_prompt_may_be_said(tmp_path):
    said = [
        {"text": "Am Freitagabend ruht er.", "word": "Freitag"},
        {"text": "Der Montag kommt nach dem Sonntag.", "word": "Sonntag"},
        "Ein Freitag.",
    ]
    assert words_of(found_in(tmp_path, said)) == {
        "Am Freitagabend ruht er.": ("Freitag", "Freitag"),
        "Der Montag kommt nach dem Sonntag.": ("Sonntag", "Sonntag"),
        "Ein Freitag.": ("Freitag", "Freitag"),
    }


def test_the_words_of_a_concept_may_be_listed(tmp_path):
    listed = {
        "words": ["keep calm", "carry on"],
        "prompts": ["We keep calm.", "They carry on", "keep calm", "Never mind", {"text": "Mind it", "word": "Mind"}],
    }
    found = found_in(tmp_path, listed)
    assert found.words == ("keep calm", "carry on", "Mind")
    assert found.prompts[3].written == "mind"
    assert "'mind' for 'Mind' in 'Never mind'" in found.remarks[0]
    only = found_in(tmp_path, {"words": ["Ulm", "Bonn"], "prompts": ["Ulm", "Bonn", "Jena", "Monday in Ulm"]}, "days")
    assert only.words == ("Ulm", "Bonn")
    assert only.left_out == ("Jena",)


def test_the_books_example_is_read_as_it_says(tmp_path):
    page = (Path(__file__).parents[2] / "book/your_own.md").read_text(encoding="utf-8")
    example = next(block for block in page.split("```json")[1:] if '"moods"' in block).partition("```")[0]
    found = read_prompts(write(tmp_path, example))
    assert found["days"].words == ("Montag", "Freitag")
    assert [prompt.written for prompt in found["moods"].prompts] == ["at ease", "on edge"]


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
        ({"months": ["May", {"text": "In June."}]}, "the word of prompt 2 of concept 'months'"),
        ({"months": ["May", {"word": "June"}]}, "prompt 2 of concept 'months'"),
        ({"months": ["May", {"text": "In June.", "word": "July"}]}, "'July', does not occur in its text 'In June.'"),
        ({"months": ["May", {"text": "In June.", "wrod": "June"}]}, "Did you mean 'word'"),
        ({"months": {"prompts": []}}, "has no prompts"),
        ({"months": {"words": [], "prompts": ["May"]}}, "the words of concept 'months'"),
        ({"months": {"words": "May", "prompts": ["May"]}}, "allowed: a list of two or more"),
        ({"months": {"words": ["May", 5], "prompts": ["May"]}}, "word 2 of concept 'months'"),
        ({"months": {"word": ["May"], "prompts": ["May"]}}, "Did you mean 'words'"),
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
