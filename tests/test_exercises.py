"""Every exercise refuses a wrong answer with a hint, and no answer with a request."""

import pytest

from saema_utils.errors import SaemaError
from saema_utils.exercises import EXERCISES, check


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_a_wrong_answer_is_refused_with_a_hint(name, capsys):
    assert check(name, EXERCISES[name].wrong) is False
    said = capsys.readouterr().out
    assert said.startswith(f"{name}: not yet. ")
    assert len(said) > len(f"{name}: not yet. ") + 10


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_no_answer_is_asked_for(name, capsys):
    assert check(name, None) is False
    assert "not answered yet" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_nonsense_never_crashes(name, capsys):
    assert check(name, object()) is False
    assert name in capsys.readouterr().out


def test_an_unknown_exercise_is_named():
    with pytest.raises(SaemaError, match="99"):
        check("99", 1)


def test_right_answers_of_chapter_seven(capsys):
    assert check("7.2", 8)
    assert check("7.3", 1 - (39 / 40) ** 17)
