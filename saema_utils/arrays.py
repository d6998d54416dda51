"""Numbers at the door of a measure: what comes as integers, half precision or lists is computed with as it is meant.

Distances in integers would be truncated by an optimiser, sums of int8 or float16 overflow, a list has no shape. A
measure says in its signature what it takes (jaxtyping's ``Float``, ``Int``, ``Bool``; ``Tensor`` or ``np.ndarray``),
and :func:`any_numbers` turns into that whatever holds the same numbers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from saema_utils.runtime import float64

F = TypeVar("F", bound=Callable)
WIDE = (torch.float32, torch.float64)
# Names of the package for what its measures take.
SHORT = {"Points": "Float[Tensor | np.ndarray]", "Distances": "Float[np.ndarray]", "Labels": "Int[Tensor | np.ndarray]"}


def any_numbers(measure: F) -> F:
    """Let a measure take its arrays as any numbers: integers, half precision, lists, read-only, any byte order.

    Arrays that already are what the signature says pass untouched, and so does what cannot be turned into it (complex
    numbers, truth values, labels with fractions): the measure itself says what is wrong.
    """
    parameters = list(inspect.signature(measure).parameters.values())
    doors = {p.name: _door(str(p.annotation)) for p in parameters}
    in_order = [doors[p.name] for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]

    @functools.wraps(measure)
    def with_any_numbers(*args: Any, **named: Any) -> Any:
        given = [door(value) if door else value for door, value in zip(in_order, args, strict=False)]
        named = {name: doors[name](value) if doors.get(name) else value for name, value in named.items()}
        return measure(*given, *args[len(given) :], **named)

    return with_any_numbers


def _door(annotation: str) -> Callable[[Any], Any] | None:
    for name, meant in SHORT.items():
        annotation = annotation.replace(name, meant)
    kind = next((kind for kind in ("Float", "Int", "Bool") if f"{kind}[" in annotation), None)
    if kind is None:
        return None
    tensors, arrays = "Tensor" in annotation, "np.ndarray" in annotation
    return functools.partial(_turned, kind=kind, tensors=tensors, arrays=arrays)


def _turned(value: Any, kind: str, tensors: bool, arrays: bool) -> Any:
    """A value as an array of the kind and library that is taken; unchanged if that is impossible."""
    if value is None or not isinstance(value, torch.Tensor | np.ndarray | list | tuple):
        return value
    if isinstance(value, torch.Tensor) and tensors:
        return _tensor(value, kind)
    try:
        array = _array(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value), kind)
    except (TypeError, ValueError):
        return value
    return array if arrays or not tensors else torch.from_numpy(array)


def _tensor(value: torch.Tensor, kind: str) -> torch.Tensor:
    if value.is_complex() or (value.is_floating_point() and (kind != "Float" or value.dtype in WIDE)):
        return value
    if kind == "Float" and value.dtype == torch.bool:
        return value
    if kind == "Float":
        return value.float() if value.is_floating_point() else float64(value)
    return value.bool() if kind == "Bool" else value.long()


def _array(value: np.ndarray, kind: str) -> np.ndarray:
    if value.dtype.kind not in ("iuf" if kind == "Float" else "iub"):
        return value
    if kind == "Float":
        wanted = np.float32 if value.dtype.kind == "f" and value.dtype.itemsize <= 4 else np.float64
    else:
        wanted = np.bool_ if kind == "Bool" else np.int64
    # Torch shares memory only with arrays that may be written, in this machine's byte order.
    return np.require(value, dtype=wanted, requirements=["W"])
