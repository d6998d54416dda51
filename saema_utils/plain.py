"""Plain data (of a file, or of a caller) against the dataclass that declares it.

pydantic checks; what is wrong first becomes one line. It takes longer to import than ``saema --help`` may take in all,
so that happens when a value is checked.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from saema_utils.errors import SaemaError, one_line, unknown_name

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def check_fields(value: Any, what: str, error: type[SaemaError]) -> None:
    """Refuse a dataclass instance whose fields are not what their annotations say (:func:`checked`)."""
    _checked(type(value), lambda model: model.model_validate(vars(value)), what, error)


def from_plain(kind: type, plain: object, what: str, error: type[SaemaError]) -> Any:
    """An instance of a dataclass from JSON-ready data: lists stand for tuples, mappings for dataclasses.

    Raises
    ------
    SaemaError
        Of the class ``error``, for a key that is no field, a field that is missing, or a value that its annotation
        does not allow.
    """
    if not isinstance(plain, Mapping):
        raise error(f"{what} is a {type(plain).__name__}; allowed: a mapping of field names to values.")
    try:
        text = json.dumps(dict(plain))
    except (TypeError, ValueError, RecursionError) as refused:
        raise error(f"{what} is no plain data ({one_line(refused)}); allowed: text, numbers, lists.") from refused
    found = _checked(kind, lambda model: model.model_validate_json(text), what, error)
    return kind(**{name: getattr(found, name) for name in found.model_fields_set})


def _checked(kind: type, validate: Any, what: str, error: type[SaemaError]) -> BaseModel:
    from pydantic import ValidationError

    try:
        return validate(_model(kind))
    except ValidationError as refused:
        raise error(_first_complaint(refused, kind, what)) from None


@functools.cache
def _model(kind: type) -> type[BaseModel]:
    """The fields of a dataclass as a pydantic model: exact kinds, finite numbers, no other names."""
    from pydantic import ConfigDict, create_model

    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    hints = get_type_hints(kind, include_extras=True)
    optional = {field.name for field in dataclasses.fields(kind)} - set(_required(kind))
    return create_model(
        kind.__name__, __config__=config, **{name: (hints[name], None if name in optional else ...) for name in hints}
    )


def _required(kind: type) -> Iterable[str]:
    missing = dataclasses.MISSING
    return (f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing)


def _first_complaint(refused: ValidationError, kind: type, what: str) -> str:
    # A misspelt field is unknown under one name and missing under the other: the first says what to do.
    wrong = min(refused.errors(include_url=False), key=lambda one: one["type"] not in UNKNOWN)
    allowed = re.sub(r"^\w+ should (be|have) ", "", wrong["msg"])
    if not wrong["loc"]:
        return f"{what} cannot be read ({allowed}). Correct it and run again."
    *above, last = wrong["loc"]
    where = ".".join(map(str, (what, *above)))
    if wrong["type"] in UNKNOWN:
        inner = get_type_hints(kind)[above[0]] if above else kind
        return unknown_name(f"field of {where}", last, [field.name for field in dataclasses.fields(inner)])
    if wrong["type"] == "missing":
        return f"{where} is incomplete: it has no {last!r}. Add it and run again."
    if wrong["type"] == "literal_error":
        return unknown_name(f"{where}.{last}", wrong["input"], re.findall(r"'([^']*)'", wrong["ctx"]["expected"]))
    return f"{where}.{last} is {wrong['input']!r}; allowed: {allowed}. Change it and run again."
