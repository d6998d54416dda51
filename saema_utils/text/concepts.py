"""Concepts as prompts: words put into sentence templates, or a file of the reader's own prompts.

A concept is a handful of words of one kind (the months, say). Each word stands in several sentences,
at the start, in the middle and at the end, so that what the prompts of a word share is the word.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from saema_utils.errors import ConceptError, one_line
from saema_utils.runs.files import user_path
from saema_utils.study import Study

MAX_FILE_BYTES = 10_000_000
MAX_PROMPT_CHARACTERS = 2_000
MAX_PROMPTS = 5_000  # of a concept: every sentence is searched for every word
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

    ``start`` is the character at which the word begins in ``text``.
    """

    text: str
    word: str
    template: str = "{}"
    concept: str = ""
    start: int = 0

    @property
    def span(self) -> tuple[int, int]:
        """First character of the word, and the character after its last."""
        return self.start, self.start + len(self.word)


@dataclass(frozen=True)
class ConceptPrompts:
    """All prompts of one concept, word by word."""

    concept: str
    prompts: tuple[Prompt, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The distinct words, in order of first appearance."""
        return tuple(dict.fromkeys(prompt.word for prompt in self.prompts))

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
    plain = json.loads(Path(__file__).with_name("authors_prompts.json").read_text(encoding="utf-8"))
    return plain["prompts"]


def _from_templates(concept: str, n_templates: int) -> ConceptPrompts:
    prompts = tuple(
        Prompt(template.replace("{}", word), word, template, concept, template.index("{}"))
        for word in WORDS[concept]
        for template in TEMPLATES[concept][:n_templates]
    )
    return ConceptPrompts(concept, prompts)


def read_prompts(path: str | Path) -> dict[str, ConceptPrompts]:
    """Read ``{concept: [prompt, ...]}`` from a JSON file.

    The word of a prompt is the known word that occurs first in it (the longest, where several begin at
    the same place), matched whole and with its case. Known words are the concept's own one-word
    prompts; if none of them occurs, the words this package knows for a concept of that name; if none of
    those occurs either, the whole prompt is taken as its word.

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


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _concept_from_file(concept: str, prompts: object, path: Path) -> ConceptPrompts:
    where = f"concept {_shown(concept)} of {path}"
    # The name becomes part of file names, and of tables in which 'NA' or '7' would not come back as text.
    if not re.fullmatch(r"[^\W\d_][\w \-]{0,63}", concept) or concept.casefold() in _NOT_TEXT_IN_TABLES:
        raise ConceptError(
            f"{where} has an unusable name; allowed: a letter, then up to 63 letters, digits, '_', '-' and spaces "
            "(not NA, None, True and the like). Rename it and run again."
        )
    if not isinstance(prompts, list):
        raise ConceptError(f"{where} is a {type(prompts).__name__}; allowed: a list of prompts. Correct the file.")
    if not prompts:
        raise ConceptError(f"{where} has no prompts. Add at least two, with different words, or remove the concept.")
    if len(prompts) > MAX_PROMPTS:
        raise ConceptError(f"{where} has {len(prompts):,} prompts; allowed: {MAX_PROMPTS:,}. Use fewer.")
    for i, prompt in enumerate(prompts):
        problem = _problem_with(prompt)
        if problem:
            raise ConceptError(f"prompt {i + 1} of {where} is {problem}. Correct the file and run again.")
    known = _known_words(prompts)
    found = ConceptPrompts(concept, tuple(_find_word(concept, text, known) for text in prompts))
    if len(found.words) < 2:
        raise ConceptError(
            f"{where} has only one distinct word ({_shown(found.words[0])}); allowed: two or more. Add prompts."
        )
    return found


def _problem_with(prompt: object) -> str:
    if not isinstance(prompt, str):
        return f"{_shown(prompt)} (type {type(prompt).__name__}), not a string"
    if not prompt.strip():
        return "blank"
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        return f"{len(prompt)} characters long; allowed: {MAX_PROMPT_CHARACTERS}"
    bad = next((c for c in prompt if unicodedata.category(c) in ("Cc", "Cs")), None)
    return "" if bad is None else f"not plain text: it holds the control character {bad!a}"


def _known_words(prompts: Iterable[str]) -> dict[str, None]:
    """The one-word prompts in order, each once (a dictionary, to be looked up in)."""
    return dict.fromkeys(prompt for prompt in prompts if not any(c.isspace() for c in prompt))


def _find_word(concept: str, text: str, own_words: Mapping[str, None]) -> Prompt:
    if text in own_words:  # nothing begins earlier or is longer
        return Prompt(text, text, "{}", concept, 0)
    for vocabulary in (own_words, WORDS.get(concept, ())):
        matches = [(start, word) for word in vocabulary if (start := find_whole_word(text, word)) >= 0]
        if matches:
            start, word = min(matches, key=lambda match: (match[0], -len(match[1])))
            return Prompt(text, word, text[:start] + "{}" + text[start + len(word) :], concept, start)
    return Prompt(text, text, "{}", concept, 0)


def find_whole_word(text: str, word: str) -> int:
    """Where ``word`` first stands alone in ``text``, or -1: no letter, digit or mark touches it.

    >>> find_whole_word("Maybe in May", "May")
    9
    """
    start = text.find(word)
    while start >= 0:
        before, after = text[start - 1 : start], text[start + len(word) : start + len(word) + 1]
        if not _joins(before) and not _joins(after):
            return start
        start = text.find(word, start + 1)
    return -1


def _joins(character: str) -> bool:
    return bool(character) and (character == "_" or unicodedata.category(character)[0] in "LNM")
