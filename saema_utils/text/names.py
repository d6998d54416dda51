"""Which prompts of a file name a word, and which are sentences.

A prompt of one word names it (unless it is a known word and a full stop). Of a prompt of several words, or in a script
that puts no spaces between them, only the others can tell. It is a name if it is short, ends without a full stop, and

* stands inside another prompt: *port of call* beside *We reached a port of call.* Another that merely begins with it
  says nothing (*I feel fine* beside *I feel fine today*), unless it looks like a name. One that holds a known word may
  be one word longer, or all capitals: *light blue* beside *blue* is a name, *I feel blue* is not; or
* looks like a name (all capitals, two words of small letters, a few characters of a script without spaces), holds no
  known word, and the other prompts are names too, or one of them that is as long stands inside a sentence.

Everything else is a sentence: better left out, and said, than measured as if it were a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from saema_utils.text.words import Vocabulary, find_whole_word, is_unspaced, same_form

MOST_WORDS = 5  # of a name: "United States of America" has four
MOST_IDEOGRAPHS, MOST_UNSPACED = 4, 12  # characters of a name without spaces: 星期一; サンフランシスコ, วันพฤหัสบดี
_FULL_STOP = re.compile(r"[.!?…。！？؟।]\W*$")
_ABBREVIATION = re.compile(r"(\w\.){2,}$")


def names_among(texts: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """The prompts that name a word, in their order; ``known`` are words that no name may hold.

    >>> names_among(["fig", "Hong Kong", "We left Hong Kong.", "Nobody came."])
    ['fig', 'Hong Kong']
    """
    stripped = list(dict.fromkeys(text.strip() for text in texts))
    plain = [text for text in stripped if not is_guess(text)]
    words = Vocabulary([*(text for text in plain if not _ends_in_full_stop(text)), *known])
    names = [text for text in plain if not _ends_in_full_stop(text) or words.find(text) is None]  # "Monday!", "Yahoo!"
    forms = list(map(same_form, stripped))
    sure, likely = [], []
    for guess in sorted(filter(_may_be_a_name, stripped), key=len):  # what is inside of a name is known before it
        folded, before = guess.casefold(), map(str.casefold, (*names, *sure, *likely, *known))
        inner = max((n for n in before if n in folded and find_whole_word(folded, n) >= 0), key=len, default="")
        if _stands_inside(same_form(guess), inner, forms):
            sure.append(guess)
        elif _looks_like_a_name(guess, inner):
            likely.append(guess)
    if len(names) + len(sure) + len(likely) < len(stripped):  # there are sentences
        longest = {kind: max((_length(n) for n in sure if is_unspaced(n) == kind), default=0) for kind in (True, False)}
        likely = [name for name in likely if _length(name) <= longest[is_unspaced(name)]]
    found = {*names, *sure, *likely}
    return [text for text in stripped if text in found]


def is_guess(text: str) -> bool:
    """Whether only the other prompts tell if this one is a word or a sentence."""
    return is_unspaced(text) or any(c.isspace() for c in text)


def _length(name: str) -> int:
    return len(name) if is_unspaced(name) else len(name.split())


def _ends_in_full_stop(text: str) -> bool:
    return _FULL_STOP.search(text) is not None and not _ABBREVIATION.search(text)


def _may_be_a_name(text: str) -> bool:
    if not is_guess(text) or _ends_in_full_stop(text):
        return False
    return len(text.split()) <= MOST_WORDS and (not is_unspaced(text) or len(text) <= MOST_UNSPACED)


def _stands_inside(guess: str, inner: str, texts: list[str]) -> bool:
    """Whether another prompt holds this one as it would hold a name."""
    if inner and not is_unspaced(guess) and not _is_capital(guess) and _length(guess) > _length(inner) + 1:
        return False
    anywhere = not inner if is_unspaced(guess) else _is_capital(guess) or _looks_like_a_name(guess, inner)
    capital = guess[0].upper() + guess[1:]
    for text in texts:
        if text != guess and (guess in text or capital in text):
            start = text.find(guess) if is_unspaced(guess) else find_whole_word(text, guess)
            if start >= (0 if anywhere else 1) or (capital != guess and find_whole_word(text, capital) >= 0):
                return True
    return False


def _looks_like_a_name(guess: str, inner: str) -> bool:
    if inner:
        return False
    if is_unspaced(guess):
        return len(guess) <= (MOST_IDEOGRAPHS if any(map(_is_ideograph, guess)) else MOST_UNSPACED)
    return _is_capital(guess) or (_length(guess) == 2 and not any(word[0].isupper() for word in guess.split()))


def _is_capital(guess: str) -> bool:
    return all(word[0].isupper() or word[0].isdigit() for word in guess.split())


def _is_ideograph(c: str) -> bool:
    """A character that is most of a word, as those of Chinese are: neither katakana nor Thai, Lao, Burmese, Khmer."""
    return is_unspaced(c) and not ("ァ" <= c <= "ー" or "ｦ" <= c <= "ﾟ" or "\u0e00" <= c <= "\u17ff")
