"""The headline measures of chapters 3 to 5, for any set of representations of one concept.

Defined where their chapters define them; here they are only lined up, so that families of autoencoders
and layers of a model can be compared in one table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


NAN = float("nan")
RESIDUAL = "residual"
NOISE_RMS = (0.0, 0.5, 1.0)
RESAMPLES = 200
MEASURES = {
    "excursion": "rank excursion under noise",
    "merging": "agreement of clusters with words",
    "intrinsic_dimension": "intrinsic dimension",
    "circularity": "cyclic order of words",
    "alpha_star": "best dose of separation",
}
"""Columns of :func:`concept_measures` and what to call them; units are none throughout."""
