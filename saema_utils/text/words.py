"""Where in a sentence a word stands, however it is written there.

A sentence is read in three ways, the strictest first, and the first way in which some word is found decides:

1. *exact*: character by character;
2. *same*: composed and decomposed letters, full and half width, any space, curly and straight apostrophes, any
   hyphen count as the same, invisible characters as nothing; and words may take an English ending;
3. *loose*: capitals are ignored too, dotted and dotless i among them, and ligatures and superscripts are read as what
   they are made of. Words of a single letter are not looked for in this way: *I* is not *i*, *as* is not *As*.

The endings are the plural's: *-s*, *-es* after s, x, z, ch, sh or o, and *-ies* for a consonant and y, for words of
three letters or more that end in a Latin letter. Other inflections (Russian cases, German plurals) are not known here,
and compounds are other words. A possessive's apostrophe ends the word before it: *Monday's* holds *Monday*.

A word stands whole: no letter, digit or mark touches it, except in scripts that put no spaces between words (Chinese,
Japanese, Thai, Lao, Khmer, Burmese). Places are always those of the sentence as it was given.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

EXACT, SAME, LOOSE = range(3)
LEAST_INFLECTED = 3  # letters; "As" is no plural
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana, of half width too
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Han
)
_ALIKE = str.maketrans({"‘": "'", "’": "'", "‐": "-", "‑": "-"})
_VOICED = "\uff9e\uff9f"  # katakana's marks of half width, which Unicode calls letters


@dataclass(frozen=True)
class Match:
    """A word and where it stands: the first character, and the one after the last, of the sentence as given."""

    word: str
    start: int
    end: int

    def is_inside(self, other: Match) -> bool:
        """Whether another match takes in all of this one, and more."""
        return other.start <= self.start and self.end <= other.end and self != other


class Vocabulary:
    """Words to look for in sentences.

    >>> Vocabulary(["York", "New York"]).find("Nobody sleeps in New York.")
    Match(word='New York', start=17, end=25)
    >>> Vocabulary(["Monday"]).find("We rest on Mondays.")
    Match(word='Monday', start=11, end=18)
    """

    def __init__(self, words: Iterable[str]):
        self._spelling: dict[str, str] = {}
        words = tuple(words)
        for word in words:
            self._spelling.setdefault(_form(word, SAME), word)
        self._forms = (
            {word: self.spelling(word) for word in words},
            _with_endings(self._spelling),
            _with_endings(
                {_form(form, LOOSE): word for form, word in reversed(self._spelling.items()) if not _is_letter(form)}
            ),
        )
        self._lengths = tuple(sorted({len(form) for form in forms}, reverse=True) for forms in self._forms)
        # Only inside a longer word can a stricter way of reading find the wrong one: "York" in "NEW York".
        self._inner: frozenset[str] = frozenset()
        self._inner = frozenset(
            inner.word
            for word in self._spelling.values()
            for way in (EXACT, SAME, LOOSE)
            for inner in self._matches(word, way)
            if inner.word != word
        )

    def spelling(self, word: str) -> str:
        """The spelling that was given first, of those that are the same characters in another form."""
        return self._spelling.get(_form(word, SAME), word)

    def find(self, text: str, loosest: int = LOOSE) -> Match | None:
        """The word that occurs first, the longest where several begin together or one lies inside another.

        With ``loosest`` there has to be one in this way of reading, or a stricter one.
        """
        found: Match | None = None
        for way in (EXACT, SAME, LOOSE):
            if found is None and way > loosest:
                return None
            for match in self._matches(text, way):
                if found is None or found.is_inside(match):
                    found = match
                    break
            if found is not None and found.word not in self._inner:
                break
        return found

    def _matches(self, text: str, way: int) -> Iterator[Match]:
        """All places of all words in one way of reading: by where they begin, longest first."""
        characters, starts, ends = _read(text, way)
        forms, lengths = self._forms[way], self._lengths[way]
        for i, start in enumerate(starts):
            if start is None or (i and _touches(characters[i - 1], characters[i])):
                continue
            for j in (i + length for length in lengths if i + length <= len(characters)):
                word, end = forms.get(characters[i:j]), ends[j - 1]
                if word is not None and end is not None and not _goes_on(characters, j):
                    yield Match(word, start, end)


def find_whole_word(text: str, word: str) -> int:
    """Where ``word``, spelled as it is, first stands alone in ``text``, or -1: no letter, digit or mark touches it.

    >>> find_whole_word("Maybe in May", "May")
    9
    """
    start = text.find(word)
    while start >= 0:
        if not (start and _touches(text[start - 1], word[0])) and not _goes_on(text, start + len(word)):
            return start
        start = text.find(word, start + 1)
    return -1


def find_anywhere(text: str, word: str) -> Match | None:
    """Where ``word`` first stands in ``text``, inside a longer word as well: *Montag* in *Montagmorgen*."""
    for way in (EXACT, SAME, LOOSE):
        (characters, starts, ends), form = _read(text, way), _form(word, way)
        i = characters.find(form)
        while i >= 0:
            start, end = starts[i], ends[i + len(form) - 1]
            if start is not None and end is not None:
                return Match(word, start, end)
            i = characters.find(form, i + 1)
    return None


def same_form(text: str) -> str:
    """A text as the second way reads it: letters composed and of full width, spaces and hyphens of one kind."""
    return _form(text, SAME)


def is_unspaced(text: str) -> bool:
    """Whether a text holds characters of a script that puts no spaces between words."""
    return _UNSPACED.search(text) is not None


def _touches(outside: str, inside: str) -> bool:
    """Whether a character beside a word, as one of its letters would, makes it part of a longer word."""
    joins = outside == "_" or unicodedata.category(outside)[0] in "LNM"
    return joins and not (_UNSPACED.match(outside) or _UNSPACED.match(inside))


def _goes_on(characters: str, end: int) -> bool:
    """Whether a word that ends here is part of a longer one; a mark belongs to the letter before it in any script."""
    if end >= len(characters):
        return False
    return unicodedata.category(characters[end])[0] == "M" or _touches(characters[end], characters[end - 1])


# ---- reading -----------------------------------------------------------------------------------


def _read(text: str, way: int) -> tuple[str, Sequence[int | None], Sequence[int | None]]:
    """A text as it is compared, and for each character where in the text it begins and ends.

    Several characters that come of one (*ss* of *ß*) begin at the first of them only, and end at the last.
    """
    if way == EXACT:
        return text, range(len(text)), range(1, len(text) + 1)
    parts: list[str] = []
    starts: list[int | None] = []
    ends: list[int | None] = []
    for start, end in _clusters(text):
        form = _FORMS[way](text[start:end])
        if form == " " and parts and parts[-1] == " ":
            ends[-1] = end
        elif form:
            parts.append(form)
            starts += [start] + [None] * (len(form) - 1)
            ends += [None] * (len(form) - 1) + [end]
    return "".join(parts), starts, ends


def _form(word: str, way: int) -> str:
    return _read(word, way)[0].strip() or word


def _clusters(text: str) -> Iterator[tuple[int, int]]:
    """Where a letter with all that is written onto it begins and ends: what normalisation may melt into one."""
    starts = [i for i, c in enumerate(text) if i == 0 or not _is_written_onto(c)]
    return itertools.pairwise([*starts, len(text)])


def _is_written_onto(c: str) -> bool:
    return c > "\x7f" and (unicodedata.category(c)[0] == "M" or "\u1160" <= c <= "\u11ff" or c in _VOICED)


def _same(cluster: str) -> str:
    if cluster.isspace():
        return " "
    if cluster.isascii():
        return cluster
    visible = (_of_one_width(c) for c in cluster if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", "".join(visible)).translate(_ALIKE)


def _of_one_width(c: str) -> str:
    kind, _, code = unicodedata.decomposition(c).partition(" ")
    return chr(int(code, 16)) if kind in ("<wide>", "<narrow>") else c


def _loose(cluster: str) -> str:
    if cluster.isascii():
        return _same(cluster).casefold()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _same(cluster)).casefold())
    return folded.replace("i\u0307", "i").replace("ı", "i").translate(_ALIKE)


_FORMS = (str, _same, _loose)


# ---- endings -----------------------------------------------------------------------------------


def _is_letter(form: str) -> bool:
    return len(form) == 1 and not is_unspaced(form)


def _with_endings(words: dict[str, str]) -> dict[str, str]:
    """Words by their forms, with the plurals that are not themselves one of the words."""
    return {ending: word for form, word in words.items() for ending in _plurals(form)} | words


def _plurals(form: str) -> Iterator[str]:
    if len(form) < LEAST_INFLECTED or "LATIN" not in unicodedata.name(form[-1], ""):
        return
    yield f"{form}s"
    if form.endswith(("s", "x", "z", "ch", "sh", "o")):
        yield f"{form}es"
    if form[-1] == "y" and form[-2] not in "aeiou":
        yield f"{form[:-1]}ies"
