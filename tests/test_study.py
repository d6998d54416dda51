"""A study is plain data that refuses impossible choices."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saema_utils.errors import StudyError
from saema_utils.notebook import read_study_file, resolve_study
from saema_utils.study import PAPER_NOISE_LEVELS, STUDIES, CorpusRecipe, SaeRecipe, Study, get_study


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_plain_data_and_back(study):
    assert Study.from_dict(json.loads(json.dumps(study.as_dict()))) == study


def test_the_registry_names_the_papers_studies():
    assert {"smoke", "smollm2-135m", "gpt2-small", "pythia-70m", "gemma-2-2b"} <= STUDIES.keys()


def test_an_unknown_study_gets_the_nearest_name():
    with pytest.raises(StudyError, match="Did you mean 'gpt2-small'"):
        get_study("gpt2-smal")


def test_studies_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STUDIES["smoke"].layer = 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer", -1),
        ("layer", "7"),
        ("layer", 1.5),
        ("layer", True),
        ("concepts", []),
        ("concepts", ["months", "months"]),
        ("concepts", ["moths"]),
        ("concepts", "months"),
        ("templates", 0),
        ("noise_levels", [0.1, 0.2]),
        ("noise_levels", [0.0]),
        ("noise_levels", [0.0, 2.0, 1.0]),
        ("noise_levels", [0.0, float("nan")]),
        ("noise_levels", [0.0, float("inf")]),
        ("noise_levels", [0.0, "1"]),
        ("noise_unit", "RMS"),
        ("noise_unit", "sigma"),
        ("noise_unit", 1),
        ("seed", -1),
        ("seed", 2**31),
        ("n_seeds", 0),
        ("name", ""),
        ("name", "../escape"),
        ("name", "a/b"),
        ("name", ".hidden"),
        ("model", ""),
        ("sae.k", 0),
        ("sae.k", 10**6),
        ("sae.architecture", "topkk"),
        ("sae.learning_rate", 0),
        ("sae.batch", 1),
        ("sae.epochs", 0),
        ("sae", 3),
        ("sae.width", 12),
        ("corpus.tokens", 10),
        ("corpus.context", 2),
        ("corpus.source", ""),
        ("geometry.min_cluster_size", 1),
        ("intervention.alphas", [0.5]),
        ("intervention.alphas", [0.0, 1e9]),
        ("intervention.coefficients", [0.1]),
        ("intervention.coefficients", [0.0]),
        ("intervention.coefficients", [-0.1, 0.0]),
        ("intervention.coefficients", [0.0, float("nan")]),
        ("intervention.alphas", [0.0, 1.0]),
        ("intervention.alphas", [-1.0, -0.5, 0.0]),
        ("intervention.alphas", [0.0, 1.0, float("inf")]),
        ("sae.k.foo", 8),
        ("seed.foo", 8),
        ("self", 1),
        ("intervention.start", "cold"),
        ("intervention.fresh_steps", 0),
        ("nonsense", 1),
    ],
)
def test_impossible_values_are_refused_in_one_line(field, value):
    with pytest.raises(StudyError) as caught:
        STUDIES["smoke"].changed(**{field: value})
    message = str(caught.value)
    assert "\n" not in message
    assert "llowed" in message or "Did you mean" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer", 1.5),
        ("layer", "ten"),
        ("layer", True),
        ("seed", 0.5),
        ("n_seeds", 2.5),
        ("templates", 2.5),
        ("noise_levels", (0.0, float("nan"))),
        ("noise_levels", (0.0, float("inf"))),
        ("noise_levels", 0.0),
        ("concepts", "months"),
        ("concepts", (1,)),
        ("corpus", {"tokens": 5000}),
        ("sae", None),
        ("name", 3),
    ],
)
def test_a_study_made_directly_is_checked_as_well(field, value):
    with pytest.raises(StudyError, match=f"{field}|name"):
        dataclasses.replace(STUDIES["smoke"], **{field: value})


@given(st.integers(1, 50), st.integers(1, 64))
def test_changing_a_choice_changes_the_digest(n_seeds, k):
    base = STUDIES["smoke"]
    changed = base.changed(**{"n_seeds": n_seeds, "sae.k": k})
    same = (n_seeds, k) == (base.n_seeds, base.sae.k)
    assert (changed.digest == base.digest) == same


def test_levels_of_noise_are_in_rms_unless_a_study_says_otherwise(tmp_path):
    for name in ("smoke", "smollm2-135m"):
        study = STUDIES[name]
        assert study.noise_unit == "rms"
        assert {0.03, 0.3, 1.0} <= set(study.noise_levels)
        assert max(study.noise_levels) > 1
    assert {0.03, 0.1, 0.3, 1.0} <= set(STUDIES["smollm2-135m"].noise_levels), "the levels of chapter 7"
    for name in ("gpt2-small", "pythia-70m", "gemma-2-2b"):
        assert (STUDIES[name].noise_unit, STUDIES[name].noise_levels) == ("absolute", PAPER_NOISE_LEVELS)
    path = tmp_path / "mine.json"
    for extra, unit in (({}, "rms"), ({"noise_unit": "absolute"}, "absolute")):
        path.write_text(json.dumps({"base": "smoke", "name": "mine", "noise_levels": [0, 0.5, 4], **extra}))
        study = read_study_file(path)
        assert (study.noise_levels, study.noise_unit) == ((0.0, 0.5, 4.0), unit)


def test_titles_do_not_change_the_digest():
    base = STUDIES["smoke"]
    assert base.changed(title="another").digest == base.digest


def test_seeds_follow_the_first_one():
    assert STUDIES["smoke"].changed(seed=5, n_seeds=3).seeds == (5, 6, 7)


def test_recipes_validate_on_their_own():
    with pytest.raises(StudyError, match="d_sae"):
        SaeRecipe(d_sae=2)
    with pytest.raises(StudyError, match="heldout"):
        CorpusRecipe(heldout_tokens=1)


def test_a_study_file_may_start_from_a_registered_study(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"base": "smoke", "name": "mine", "layer": 3}))
    study = read_study_file(path)
    assert (study.name, study.layer, study.corpus) == ("mine", 3, STUDIES["smoke"].corpus)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"name": 3}', '{"base": "smoke", "layr": 3}', "{}"])
def test_a_bad_study_file_is_named(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(StudyError):
        resolve_study(str(path))


def test_a_missing_study_file_is_named(tmp_path):
    with pytest.raises(StudyError, match=r"nowhere\.json"):
        resolve_study(str(tmp_path / "nowhere.json"))


def test_resolving_with_a_seed_changes_only_the_seed():
    assert resolve_study("smoke", 7) == STUDIES["smoke"].changed(seed=7)
