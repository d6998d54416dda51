"""What does each chapter compute for a run, show and find? One folder a chapter, named for its subject."""

import importlib
from typing import TYPE_CHECKING

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


def declared_results() -> dict[str, "Result"]:
    """Every result that a chapter declares, by the place where it is kept, in the order of the chapters."""
    from saema_utils.runs.freshness import is_stage, package_modules
    from saema_utils.runs.tables import RESULTS

    for module in package_modules():
        if module.startswith(f"{__name__}.") and is_stage(module):
            importlib.import_module(module)
    return dict(sorted(RESULTS.items(), key=lambda item: item[1].name))
