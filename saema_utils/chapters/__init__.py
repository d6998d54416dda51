"""What does each chapter compute for a run, show and find? One folder a chapter, named for its subject."""

import importlib
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saema_utils.runs.tables import Result

SUBJECTS = {
    1: "activations",
    2: "sae",
    3: "stratification",
    4: "geometry",
    5: "intervention",
    6: "replay",
    7: "scorecard",
    8: "across_models",
    9: "families",
}
OF_A_RUN = range(1, 8)  # what saema run executes by default, and every book shows


def face(chapter: str, *modules: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a chapter's folder: its names are those that these modules define or take from
    this package, each loaded when a name is first asked for that no module before it has."""

    def handed_on(module: str) -> dict[str, Any]:
        names = vars(importlib.import_module(f"{chapter}.{module}"))
        return {name: value for name, value in names.items() if not name.startswith("_") and _is_ours(value)}

    def find(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{chapter}.{name}")
        for module in () if name.startswith("_") else modules:
            if name in (found := handed_on(module)):
                return found[name]
        raise AttributeError(f"module {chapter!r} has no attribute {name!r}")

    return find, lambda: sorted({*modules, *(name for module in modules for name in handed_on(module))})


def _is_ours(value: Any) -> bool:
    """Whether a module, a function or a class is of this package; of a constant nobody can tell, and it is."""
    if not isinstance(value, ModuleType | FunctionType | type):
        return True
    home = value.__name__ if isinstance(value, ModuleType) else value.__module__
    return home.split(".")[0] == __name__.split(".")[0]


def declared_results() -> dict[str, "Result"]:
    """Every result that a chapter declares, by the place where it is kept, in the order of the chapters."""
    from saema_utils.runs.freshness import is_stage, package_modules
    from saema_utils.runs.tables import RESULTS

    for module in package_modules():
        if module.startswith(f"{__name__}.") and is_stage(module):
            importlib.import_module(module)
    return dict(sorted(RESULTS.items(), key=lambda item: item[1].name))
