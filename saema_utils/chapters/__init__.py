"""What does each chapter compute for a run, show and find? One folder a chapter, named for its subject."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saema_utils.runs.tables import Result

SUBJECTS = {
    1: "activations",
    2: "sae",
    3: "stratification",
    4: "geometry",
    5: "intervention",
    6: "scorecard",
    7: "across_models",
    8: "families",
}


def face(chapter: str, *modules: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a chapter's folder: its names are those of these modules, each loaded when a
    name is first asked for that no module before it has."""

    def load(module: str) -> Any:
        return importlib.import_module(f"{chapter}.{module}")

    def find(name: str) -> Any:
        if name in modules:
            return load(name)
        for module in () if name.startswith("_") else map(load, modules):
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {chapter!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({name for module in map(load, modules) for name in vars(module) if not name.startswith("_")})

    return find, names


def declared_results() -> dict[str, "Result"]:
    """Every result that a chapter declares, by the place where it is kept, in the order of the chapters."""
    from saema_utils.runs.freshness import is_stage, package_modules
    from saema_utils.runs.tables import RESULTS

    for module in package_modules():
        if module.startswith(f"{__name__}.") and is_stage(module):
            importlib.import_module(module)
    return dict(sorted(RESULTS.items(), key=lambda item: item[1].name))
