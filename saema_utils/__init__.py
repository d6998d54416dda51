"""What sparse coding does to the geometry of a language model's representations.

The names below are the public contract; each is imported from its module when first used, so that
``import saema_utils`` costs nothing.
"""

from __future__ import annotations

import importlib
import os

# Read once, when torch is loaded: what Apple's device cannot do (pairwise distances, say) is then done on the CPU.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"

_HOME = {
    "study": ("Study", "STUDIES", "get_study"),
    "artifacts": ("RunDirectory",),
    "errors": ("SaemaError",),
    "concepts": ("ConceptPrompts", "build_prompts"),
    "models": ("load_language_model",),
    "activations": ("ConceptActivations", "capture_residual_stream"),
    "saes": ("load_sae", "train_sae"),
    "stratification": (
        "unfold", "covariance_spectrum", "numerical_rank", "effective_rank", "participation_ratio", "noise_rank_sweep",
    ),
    "geometry": (
        "find_local_representations", "LocalRepresentations", "poles", "aedp", "mst_weight",
        "average_geodesic_distance", "betti_numbers", "intrinsic_dimension", "procrustes_disparity",
    ),
    "intervention": ("scale_separation", "dose_response", "optimise_separability"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'saema_utils' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
