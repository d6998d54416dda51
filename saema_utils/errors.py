"""Every error this package raises on purpose.

One tree, so that a caller can catch all of it, and one rule for messages: a single first line that
names the offending value, says what is allowed, and gives the next step.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST = 1500
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class SaemaError(Exception):
    """Root of the tree. ``str(error)`` is one line, fit to be shown to a person as it is.

    Values come from files, so what would break the line or steer a terminal is shown escaped, and a
    value of megabytes is left out in the middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST:
            text = f"{text[: 2 * LONGEST // 3]} [...] {text[-LONGEST // 3 :]}"
        return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class StudyError(SaemaError):
    """A study, or a value in it, that cannot be run."""


class DeviceError(SaemaError):
    """A device that this machine does not have, or no memory left on it."""


class ConceptError(SaemaError):
    """Concept words or prompts that are not of the expected shape."""


class CorpusError(SaemaError):
    """A text source that cannot be read, or holds too little text."""


class ModelError(SaemaError):
    """A language model that cannot be found or loaded."""


class HubUnreachableError(ModelError):
    """The model hub does not answer and nothing is cached; the message says how to run offline."""


class HookNeverFiredError(ModelError):
    """A hook name that exists nowhere in the model: silently a no-op in most libraries."""


class ActivationError(SaemaError):
    """Activations that are not finite, are masked entirely, or have the wrong shape."""


class SaeError(SaemaError):
    """A sparse autoencoder that cannot be loaded or does not fit the model."""


class EmptySpectrumError(SaemaError):
    """A spectrum without a positive eigenvalue: its rank-like measures have no value."""


class GeometryError(SaemaError):
    """Points on which a geometric measure is not defined."""


class InterventionError(SaemaError):
    """An edit of the latents that cannot be made."""


class ClaimError(SaemaError):
    """A claim whose statistic, control or rule is missing or malformed."""


class ArtifactError(SaemaError):
    """A file of a run that is missing, damaged, or belongs to another run."""


class MissingInputError(ArtifactError):
    """An earlier chapter has not been run yet; the message names it and the command."""


class RunLockedError(ArtifactError):
    """Another process is working in this run directory."""


class SweepError(SaemaError):
    """A sweep that cannot be planned, or whose engine is not there."""


class BookError(SaemaError):
    """A notebook that failed, or a book that does not build cleanly."""


def require(condition: object, what: str, value: object, allowed: str, error: type[SaemaError]) -> None:
    """Raise ``error``, with the value and what is allowed, where a condition does not hold."""
    if not condition:
        raise error(f"{what} is {value!r}; allowed: {allowed}. Change it and run again.")


def one_line(text: object, most: int = 300) -> str:
    """What somebody else's error (or any text) says, on one line, without colours, at most ``most`` long."""
    flat = " ".join(TERMINAL_CODE.sub("", str(text)).split())
    return flat if len(flat) <= most else f"{flat[: most - 3]}..."


def unknown_name(kind: str, name: object, allowed: Iterable[str], see: str = "") -> str:
    """One line for an unknown name: what was given, the nearest allowed name, and all of them.

    >>> unknown_name("study", "smok", ["smoke", "gpt2-small"])
    "no study named 'smok'. Did you mean 'smoke'? Allowed: gpt2-small, smoke."
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    shown = str(name) if len(str(name)) <= 80 else str(name)[:77] + "..."
    return f"no {kind} named {shown!r}.{guess} Allowed: {', '.join(names)}.{' ' + see if see else ''}"
