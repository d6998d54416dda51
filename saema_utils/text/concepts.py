"""Concepts as prompts: words put into sentence templates, or a file of the reader's own prompts.

A concept is a handful of words of one kind (the months, say). Each word stands in several sentences,
at the start, in the middle and at the end, so that what the prompts of a word share is the word.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from saema_utils.errors import ConceptError, one_line, unknown_name
from saema_utils.runs.files import user_path
from saema_utils.study import Study
from saema_utils.text.names import is_guess, names_among
from saema_utils.text.words import EXACT, LOOSE, Match, Vocabulary, find_anywhere, find_whole_word

MAX_FILE_BYTES = 10_000_000
MAX_PROMPT_CHARACTERS = 2_000
MAX_PROMPTS = 5_000  # of a concept: every sentence is searched for every word
MOST_SHOWN = 3  # prompts that a remark names
AUTHORS_FILE = Path(__file__).with_name("authors_prompts.json")
_NOT_TEXT_IN_TABLES = frozenset({"na", "nan", "null", "none", "true", "false", "inf", "infinity"})


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS: dict[str, tuple[str, ...]] = {
    "months": _split("January February March April May June July August September October November December"),
    "days": _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "elements": _split(
        "hydrogen helium lithium boron carbon nitrogen oxygen fluorine neon sodium magnesium sulfur iron copper"
    ),
    "color": _split("red orange yellow green blue purple pink brown black white gray"),
    "planets": _split("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune"),
    "number": _split("zero one two three four five six seven eight nine ten eleven twelve"),
    "alphabet": tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "phonetic_symbol": tuple("iɪeɛæɑɔʊuəθðʃʒŋɡ"),
    "constellations": _split(
        "Aries Taurus Gemini Cancer Leo Virgo Libra Scorpio Sagittarius Capricorn Aquarius Pisces"
    ),
}
# Words written with a small letter never open a sentence, so that one word keeps one spelling.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "months": (
        "We moved into the new house in {}.",
        "{} was unusually cold that year.",
        "The report is due at the end of {} at the latest.",
        "Her birthday falls in early {}, like mine.",
        "They will announce the winner in {}.",
        "Every {} the village holds a fair.",
        "My calendar for {} is already full.",
        "Nobody expected snow in {}, but it came.",
    ),
    "days": (
        "The shop is closed on {}.",
        "{} is when the market opens early.",
        "Let us meet on {} after lunch.",
        "She always calls her mother on {} evening.",
        "The next train leaves on {}.",
        "By {} the letter had arrived.",
        "Our team plays every {} in the park.",
        "It rained from {} onwards.",
    ),
    "elements": (
        "The flask was filled with {}.",
        "A trace of {} was found in the sample.",
        "Chemists have studied {} for centuries.",
        "In this table, {} has its own box.",
        "The spectrum shows a clear line of {}.",
        "Atoms of {} were counted one by one.",
        "Without {} the reaction does not start.",
        "The price of {} went up again.",
    ),
    "color": (
        "She painted the front door {}.",
        "The {} car stopped at the corner.",
        "His favorite sweater is {}.",
        "We chose {} for the kitchen walls.",
        "A bird with {} feathers sat on the roof.",
        "Mix in some {} until it looks right.",
        "The sign turned {} when we arrived.",
        "Her notebook has a {} cover.",
    ),
    "planets": (
        "The probe flew past {} last night.",
        "{} is visible through a small telescope.",
        "Astronomers measured the orbit of {}.",
        "A year on {} differs from ours.",
        "The children drew a picture of {}.",
        "On its way, {} crosses this part of the sky.",
        "Scientists modeled the core of {} in detail.",
        "We know little about the weather on {}.",
    ),
    "number": (
        "There were {} people in the room.",
        "The answer to the question is {}.",
        "She counted to {} and opened her eyes.",
        "He bought {} apples at the market.",
        "The score stayed at {} for an hour.",
        "We need {} more chairs.",
        "Page {} is missing from the book.",
        "Bus number {} stops here.",
    ),
    "alphabet": (
        "The letter {} is written on the board.",
        "Her name starts with the letter {}.",
        "Please tick box {} on the form.",
        "The child traced a capital {} in the sand.",
        "Section {} covers the basics.",
        "He pressed the key marked {}.",
        "Row {} is at the back of the hall.",
        "Find a word that ends in {}.",
    ),
    "phonetic_symbol": (
        "The sound [{}] occurs in many languages.",
        "Linguists write this sound as {}.",
        "The symbol {} stands for one speech sound.",
        "In the transcription, {} marks the stressed part.",
        "Students learn to pronounce {} early.",
        "The dictionary uses {} in its guide.",
        "Listen for {} in the recording.",
        "The last symbol on the chart is {}.",
    ),
    "constellations": (
        "Her star sign is {}.",
        "{} rises in the east tonight.",
        "The stars of {} are easy to find.",
        "People born under {} read this column.",
        "The old map shows {} near the edge.",
        "We looked for {} with binoculars.",
        "Tonight {} stands high above the hills.",
        "The myth of {} is told in many ways.",
    ),
}


@dataclass(frozen=True)
class Prompt:
    """One sentence: its ``text``, the concept ``word`` in it, and the ``template`` it was made from.

    ``start`` is the character at which the word begins in ``text``, ``end`` the one after its last: the word may be
    written there in another form, *Mondays* for *Monday*. By default it is as long as the word.
    """

    text: str
    word: str
    template: str = "{}"
    concept: str = ""
    start: int = 0
    end: int = -1

    def __post_init__(self) -> None:
        if self.end < 0:
            object.__setattr__(self, "end", self.start + len(self.word))

    @property
    def span(self) -> tuple[int, int]:
        """First character of the word, and the character after its last."""
        return self.start, self.end

    @property
    def written(self) -> str:
        """The word as it is written in the text."""
        return self.text[self.start : self.end]


@dataclass(frozen=True)
class ConceptPrompts:
    """All prompts of one concept, word by word.

    Attributes
    ----------
    left_out
        Texts of a file that are no prompts, because no word was found in them.
    guessed
        Words of several words (or of a script without spaces) that a file names in a prompt of their own, and that no
        sentence of it holds: they may be sentences.
    """

    concept: str
    prompts: tuple[Prompt, ...]
    left_out: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The distinct words, in order of first appearance."""
        return tuple(dict.fromkeys(prompt.word for prompt in self.prompts))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know of how the words were found, a line each; none where nothing is in doubt."""
        found = []
        if self.left_out:
            found.append(f"concept {self.concept!r}: left out {left_out(self)}. {EXPLICIT}")
        if self.guessed:
            shown = _first_few(list(map(_quoted, self.guessed)))
            found.append(
                f"concept {self.concept!r}: taken for words, though no sentence holds them: {shown}. {EXPLICIT}"
            )
        doubtful = [p for p in self.prompts if p.written.islower() and not p.word.islower()]
        if doubtful:
            shown = _first_few([f"{p.written!r} for {p.word!r} in {_quoted(p.text)}" for p in doubtful])
            found.append(f"concept {self.concept!r}: found without its capital: {shown}. {EXPLICIT}")
        return tuple(found)

    def __len__(self) -> int:
        return len(self.prompts)


def build_prompts(study: Study) -> dict[str, ConceptPrompts]:
    """Prompts of every concept of a study.

    Without ``study.prompts_file`` each word of each concept is put into the first ``study.templates``
    templates. With it, prompts come from that file: those of ``study.concepts`` if the file has them
    all, otherwise of every concept in the file.

    Raises
    ------
    ConceptError
        If the prompts file cannot be read or is not of the expected shape.
    """
    if study.prompts_file:
        found = read_prompts(study.prompts_file)
        wanted = study.concepts if set(study.concepts) <= set(found) else tuple(found)
        return {concept: found[concept] for concept in wanted}
    return {concept: _from_templates(concept, study.templates) for concept in study.concepts}


def authors_prompts() -> dict[str, list[str]]:
    """The prompts of the paper's authors, by concept: 555 short texts, MIT licence; the file says where from."""
    plain = json.loads(AUTHORS_FILE.read_text(encoding="utf-8"))
    return plain["prompts"]


@functools.cache  # keys of results ask for it dozens of times a run, and finding words takes a fifth of a second
def authors_concepts() -> Mapping[str, ConceptPrompts]:
    """The authors' prompts with the word that each is about, as :func:`read_prompts` finds it."""
    found = {name: _concept_from_file(name, prompts, AUTHORS_FILE) for name, prompts in authors_prompts().items()}
    return MappingProxyType(found)


def _from_templates(concept: str, n_templates: int) -> ConceptPrompts:
    prompts = tuple(
        Prompt(template.replace("{}", word), word, template, concept, template.index("{}"))
        for word in WORDS[concept]
        for template in TEMPLATES[concept][:n_templates]
    )
    return ConceptPrompts(concept, prompts)


def read_prompts(path: str | Path) -> dict[str, ConceptPrompts]:
    """Read the prompts of concepts from a JSON file.

    A concept is one of ::

        ["prompt", ...]                                      words are found among the prompts
        [{"text": "prompt", "word": "its word"}, ...]        or said, prompt by prompt
        {"words": ["word", ...], "prompts": ["prompt", ...]} or listed

    The word of a prompt is the known word that occurs first in it (the longest, where several begin at the same place
    or one lies inside another), as :mod:`saema_utils.text.words` finds it: with its case, if it can be.
    Unless they are listed, known words are those that are said, and the prompts that name one
    (:mod:`saema_utils.text.names`): every prompt of one word, and of several words where the others show that it is no
    sentence. If none of them occurs, the words this package knows for a concept of that name are looked for. A prompt
    in which no word is found is left out, and named in :attr:`ConceptPrompts.remarks`.

    Raises
    ------
    ConceptError
        One line that names the file, what is wrong, and what to do.
    """
    path = user_path(path)
    remedy = 'Expected {"concept": ["prompt", ...], ...}. Correct the file and run again.'
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ConceptError(f"prompts file {path} is not a file. {remedy}")
        if size > MAX_FILE_BYTES:
            raise ConceptError(
                f"prompts file {path} has {size:,} bytes; allowed: {MAX_FILE_BYTES:,}. Use fewer prompts."
            )
        plain = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise ConceptError(
            f"cannot read prompts file {path} ({error.strerror or error}). Check the path and run again."
        ) from error
    except RecursionError as error:
        raise ConceptError(f"prompts file {path} is nested too deeply. {remedy}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise ConceptError(f"prompts file {path} is not JSON ({one_line(error)}). {remedy}") from error
    if not isinstance(plain, Mapping):
        raise ConceptError(f"prompts file {path} holds a {type(plain).__name__}, not an object. {remedy}")
    if not plain:
        raise ConceptError(f"prompts file {path} holds no concept. {remedy}")
    return {name: _concept_from_file(name, prompts, path) for name, prompts in plain.items()}


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    plain = dict(pairs)
    if len(plain) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is named twice")
    return plain


def _concept_from_file(concept: str, plain: object, path: Path) -> ConceptPrompts:
    where = f"concept {_shown(concept)} of {path}"
    # The name becomes part of file names, and of tables in which 'NA' or '7' would not come back as text.
    if not re.fullmatch(r"[^\W\d_][\w \-]{0,63}", concept) or concept.casefold() in _NOT_TEXT_IN_TABLES:
        raise ConceptError(
            f"{where} has an unusable name; allowed: a letter, then up to 63 letters, digits, '_', '-' and spaces "
            "(not NA, None, True and the like). Rename it and run again."
        )
    listed: list[str] | None = None
    if isinstance(plain, Mapping) and "prompts" in plain:
        _check_keys(plain, ("words", "prompts"), where)
        listed = _checked_words(plain["words"], where) if "words" in plain else None
        plain = plain["prompts"]
    if not isinstance(plain, list):
        raise ConceptError(
            f"{where} is a {type(plain).__name__}; allowed: a list of prompts, or "
            '{"words": [...], "prompts": [...]}. Correct the file.'
        )
    if not plain:
        raise ConceptError(f"{where} has no prompts. Add at least two, with different words, or remove the concept.")
    if len(plain) > MAX_PROMPTS:
        raise ConceptError(f"{where} has {len(plain):,} prompts; allowed: {MAX_PROMPTS:,}. Use fewer.")
    entries = [_entry(prompt, f"prompt {i + 1} of {where}") for i, prompt in enumerate(plain)]
    found = _find_words(concept, entries, listed, where)
    if len(found.words) < 2:
        only = f"only one distinct word ({_shown(found.words[0])})" if found.words else "no word that was found"
        what = f"Left out: {left_out(found)}. {EXPLICIT}" if found.left_out else "Add prompts."
        raise ConceptError(f"{where} has {only}; allowed: two or more. {what}")
    return found


def _entry(prompt: object, which: str) -> tuple[str, str]:
    """The text of a prompt, and its word where the file says it (or else nothing)."""
    text, word = prompt, ""
    if isinstance(prompt, Mapping):
        _check_keys(prompt, ("text", "word"), which)
        text, word = prompt.get("text"), prompt.get("word")
        if problem := _problem_with(word):
            raise ConceptError(f"the word of {which} is {problem}. Correct the file and run again.")
        word = word.strip()
    if problem := _problem_with(text):
        raise ConceptError(f"{which} is {problem}. Correct the file and run again.")
    return text, word


def _check_keys(plain: Mapping, allowed: tuple[str, ...], where: str) -> None:
    for key in plain:
        if key not in allowed:
            raise ConceptError(unknown_name(f"key of {where}", key, allowed))


def _checked_words(words: object, where: str) -> list[str]:
    if not isinstance(words, list) or not words:
        raise ConceptError(
            f"the words of {where} are {_shown(words)}; allowed: a list of two or more. Correct the file."
        )
    for i, word in enumerate(words):
        if problem := _problem_with(word):
            raise ConceptError(f"word {i + 1} of {where} is {problem}. Correct the file and run again.")
    return [word.strip() for word in words]


def _problem_with(prompt: object) -> str:
    if not isinstance(prompt, str):
        return f"{_shown(prompt)} (type {type(prompt).__name__}), not a string"
    if not prompt.strip():
        return "blank"
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        return f"{len(prompt)} characters long; allowed: {MAX_PROMPT_CHARACTERS}"
    bad = next((c for c in prompt if unicodedata.category(c) in ("Cc", "Cs")), None)
    return "" if bad is None else f"not plain text: it holds the control character {bad!a}"


# ---- finding words -----------------------------------------------------------------------------


def _find_words(concept: str, entries: list[tuple[str, str]], listed: list[str] | None, where: str) -> ConceptPrompts:
    """Every prompt with its word; what has none is left out."""
    known = () if listed else WORDS.get(concept, ())
    names = listed or names_among([text for text, word in entries if not word], known)
    own, package = Vocabulary([*names, *(word for _, word in entries if word)]), Vocabulary(known)
    prompts, left = [], []
    for i, (text, word) in enumerate(entries):
        if word:
            match = _said(text, word, f"prompt {i + 1} of {where}")
        else:  # a word of the package as it is spelled, before one of the file that may be another: "may" is not May
            found = (words.find(text, way) for way in (EXACT, LOOSE) for words in (own, package))
            match = next(filter(None, found), None)
        if match is None:
            left.append(text)
        else:
            template = text[: match.start] + "{}" + text[match.end :]
            prompts.append(Prompt(text, own.spelling(match.word), template, concept, match.start, match.end))
    sure = {*(listed or ()), *(word for _, word in entries), *(p.word for p in prompts if p.text.strip() != p.written)}
    guessed = tuple(name for name in names if is_guess(name) and own.spelling(name) not in sure)
    alone = all(prompt.text.strip() == prompt.written for prompt in prompts)  # a list of names, and no sentence
    return ConceptPrompts(concept, tuple(prompts), tuple(left), () if alone else guessed)


def _said(text: str, word: str, which: str) -> Match:
    """Where the word stands that the file says, as part of a longer one if it must."""
    start = find_whole_word(text, word)
    if start >= 0:
        return Match(word, start, start + len(word))
    found = Vocabulary([word]).find(text) or find_anywhere(text, word)
    if found is None:
        raise ConceptError(
            f"the word of {which}, {_quoted(word)}, does not occur in its text {_quoted(text)}. "
            "Write it as the text does, or correct the text."
        )
    return found


# ---- showing -----------------------------------------------------------------------------------

EXPLICIT = (
    'To say which word a prompt is about, write {"text": "...", "word": "..."} in its place; to list the words of a '
    'concept, {"words": [...], "prompts": [...]}.'
)


def left_out(found: ConceptPrompts) -> str:
    """How many prompts were left out, of how many, and the first few; empty where there are none."""
    n = len(found.left_out)
    if not n:
        return ""
    return f"{n} of {n + len(found)} prompts without a known word: {_first_few(list(map(_quoted, found.left_out)))}"


def _first_few(items: list[str]) -> str:
    more = len(items) - MOST_SHOWN
    return ", ".join(items[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _quoted(text: str) -> str:
    return repr(one_line(text, 60))


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
