"""Chapter 7: runs of several models and seeds beside each other."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": ["agreement", "comparison", "heterogeneity", "standard_errors"],
        "figures": ["agreement_forest", "effects_by_run", "null_spread", "sae_quality"],
        "findings": ["alarms", "beyond_chance", "disagreeing", "pointing_apart"],
    },
)
