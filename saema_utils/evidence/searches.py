"""What gradient searches do to the error, one value a concept and analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

RESTARTS = {"both": (0, 1), "first": (0,), "second": (1,)}
RANDOM = "random"


def _at(path: pd.DataFrame) -> dict[str, float]:
    """Log of the error over that before the search: at its end, part of the way, and where it is least."""
    path = path.sort_values("step")
    changes, sizes = np.log(path["mse"].to_numpy() / path["mse"].iloc[0]), path["edit_norm"].to_numpy()

    def when(share: float) -> float:
        return float(changes[int(np.argmax(sizes >= share * sizes[-1]))])

    ends = {"end": float(changes[-1]), "three quarters of the edit": when(0.75), "half of the edit": when(0.5)}
    return ends | {"a quarter of the edit": when(0.25), "least error": float(changes.min())}


def search_values(searches: pd.DataFrame) -> pd.DataFrame:
    """Change of the log error under each search, and under random edits of the same size.

    Parameters
    ----------
    searches
        The courses of searches: columns concept, search (``random`` is the control), direction, restart, step, mse,
        edit_norm.

    Returns
    -------
    Columns concept, representation (search, random), measure (error_change), objective, way, restart, at, value,
    reason. A search that lowers separation is turned round: its value is positive where the error fell.
    """
    import pandas as pd

    found = {
        key: _at(path) for key, path in searches.groupby(["concept", "search", "direction", "restart"], sort=False)
    }
    asked = dict.fromkeys((name, search, way) for name, search, way, _ in found if search != RANDOM)
    rows = []
    for concept, objective, way in asked:
        for restart, numbers in RESTARTS.items():
            for at in next(iter(found.values())):
                choices = {"objective": objective, "way": way, "restart": restart, "at": at}
                for representation, key in (("search", (objective, way)), (RANDOM, (RANDOM, "raise"))):
                    known = [found[concept, *key, n][at] for n in numbers if (concept, *key, n) in found]
                    value = float(np.mean(known)) * (-1 if way == "lower" else 1) if known else np.nan
                    reason = "" if known else "the search was not run from this start"
                    rows.append(
                        {"concept": concept, "representation": representation, "measure": "error_change"}
                        | choices
                        | {"value": value, "reason": reason}
                    )
    columns = ["concept", "representation", "measure", "objective", "way", "restart", "at", "value", "reason"]
    return pd.DataFrame(rows, columns=columns)
