"""What does the authors' own protocol measure here, and which of its steps makes what it finds?

Written anew from what their published code does, step by step, so that each step can be switched off.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"nudges": ["correlations", "kept_records", "walk_poles"], "structure": ["measure_structure"]},
)
