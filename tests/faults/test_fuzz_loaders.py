"""Random damage to every file that a user may hand in: it loads, or it is refused in one line, and nothing else.

``SAEMA_FUZZ_EXAMPLES`` says how many examples a loader gets, drawn afresh; ``make fuzz`` sets it.
"""

from __future__ import annotations

import json
import os

import pytest
from fuzz_formats import LOADERS, fits_a_person, load_or_refuse, sound_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ASKED = os.environ.get("SAEMA_FUZZ_EXAMPLES")
FUZZ = settings(
    max_examples=int(ASKED or 60),
    derandomize=ASKED is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
AS_JSON = ("study", "prompts", "rows", "notebook", "manifest", "cfg.json")
NASTY = (
    None,
    True,
    0,
    -1,
    10**30,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "\n",
    "\ud800",
    "../up",
    "1e3",
    [],
    [[]],
    {},
    [None],
    [{}],
    {"": {}},
    "x" * 3000,
)
values = st.recursive(
    st.sampled_from(NASTY) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


class Sound(dict):
    def __repr__(self):  # hypothesis shows the arguments of a failure
        return "sound"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return Sound(sound_files(tmp_path_factory.mktemp("sound")))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def nothing_outside(place, monkeypatch):
    """Work in a folder that must stay empty, beside those that the loaders are given."""
    outside = place / "outside"
    outside.mkdir(exist_ok=True)
    monkeypatch.chdir(outside)
    yield
    assert list(outside.iterdir()) == []
    assert {path.name for path in place.iterdir()} <= {"outside", *LOADERS}


def damaged(draw, data: bytes) -> bytes:
    """Bits flipped, a piece cut out, doubled or replaced, or the end lost."""
    broken = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(broken) - 1, 0)))
        stop = start + draw(st.integers(0, 12))
        match draw(st.sampled_from(["flip", "cut", "double", "replace", "truncate"])):
            case "flip" if broken:
                broken[start] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del broken[start:stop]
            case "double":
                broken[start:start] = broken[start:stop]
            case "replace":
                broken[start:stop] = draw(st.binary(max_size=8))
            case "truncate":
                del broken[start:]
    return bytes(broken)


def altered(draw, plain):
    """One value somewhere inside replaced, a key added, or an entry lost."""
    if not plain or not isinstance(plain, dict | list) or draw(st.integers(0, 3)) == 0:
        return draw(values)
    copy = dict(plain) if isinstance(plain, dict) else list(plain)
    key = draw(st.sampled_from(list(copy) if isinstance(copy, dict) else range(len(copy))))
    match draw(st.sampled_from(["inside", "inside", "add", "lose"])):
        case "inside":
            copy[key] = altered(draw, copy[key])
        case "add" if isinstance(copy, dict):
            copy[draw(st.text(max_size=8))] = draw(values)
        case "lose":
            del copy[key]
    return copy


def test_a_refusal_is_judged():
    assert fits_a_person("")
    assert fits_a_person("seed is 'x'; allowed: a number.")
    for message in ("no", "two lines, each long enough\nof a message", "Traceback (most recent call last)", "x" * 2000):
        assert not fits_a_person(message)


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_whole_loads(name, sound, place):
    assert load_or_refuse(name, sound[name], place) == ""


@pytest.mark.parametrize("name", LOADERS)
@FUZZ
@given(data=st.data())
def test_damaged_bytes_load_or_are_refused(name, sound, place, data):
    assert fits_a_person(load_or_refuse(name, damaged(data.draw, sound[name]), place))


@pytest.mark.parametrize("name", LOADERS)
@FUZZ
@given(noise=st.binary(max_size=64) | st.text(max_size=64).map(lambda text: text.encode("utf-8", "replace")))
def test_noise_loads_or_is_refused(name, place, noise):
    assert fits_a_person(load_or_refuse(name, noise, place))


@pytest.mark.parametrize("name", AS_JSON)
@FUZZ
@given(data=st.data())
def test_altered_values_load_or_are_refused(name, sound, place, data):
    broken = json.dumps(altered(data.draw, json.loads(sound[name]))).encode()
    assert fits_a_person(load_or_refuse(name, broken, place))


@pytest.mark.parametrize("name", ["sweep", "claims"])
@FUZZ
@given(data=st.data())
def test_altered_yaml_loads_or_is_refused(name, sound, place, data):
    import yaml

    broken = yaml.safe_dump(altered(data.draw, yaml.safe_load(sound[name]))).encode("utf-8", "replace")
    assert fits_a_person(load_or_refuse(name, broken, place))


@pytest.mark.parametrize("name", ["table", "tensors"])
@FUZZ
@given(data=st.data())
def test_a_damaged_artifact_is_never_handed_out(name, sound, place, data):
    broken = damaged(data.draw, sound[name])
    assert broken == sound[name] or "damaged" in load_or_refuse(name, broken, place)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(9 * ['*' + old])}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
ODD_YAML = (
    "a: !!bool maybe",
    "a: !!int x",
    "a: !!timestamp x",
    "a: 2001-99-99",
    "!!map abc",
    "!!map [1, 2]",
    "? [a]\n: b",
    "base: !!python/object/apply:os.system [ls]",
    "- !!float ''",
    "&a [*a]",
    "base: smoke\ngrid: {seed: &a [*a]}",
    "base: smoke\ngrid: {seed: [0, 0]}",
    "base: smoke\ncases: [{layer: 3, 51ayer: 4, 5: 5}]",
    BOMB,
)


@pytest.mark.parametrize("text", ODD_YAML)
@pytest.mark.parametrize("name", ["sweep", "claims"])
def test_odd_yaml_is_refused(name, text, place):
    assert load_or_refuse(name, text.encode(), place)


@pytest.mark.parametrize("text", ["1-99999999999999999", "9" * 5000, "1-", "\0", "1\n2"])
def test_odd_chapters_are_refused_at_once(text, place):
    assert load_or_refuse("chapters", text.encode(), place)


def test_the_tree_of_a_deep_file_is_refused(place):
    for name in ("study", "prompts", "manifest", "cfg.json", "notebook"):
        assert load_or_refuse(name, b"[" * 100_000, place), name
    for name in ("sweep", "claims"):
        assert load_or_refuse(name, b"[" * 3_000, place), name
    assert load_or_refuse("parameters", b"a = " + b"-" * 50_000 + b"1", place)
