"""Chapter 8: six families of autoencoder at one sparsity, and one family at several depths."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": ["concept_activations", "families_table", "family_coders", "family_training", "ruler_of_families"],
        "measures": ["MEASURES", "concept_measures"],
        "layers": ["layer_table"],
        "figures": ["families_or_seeds", "family_strips", "over_depth", "sparsity_dots"],
        "findings": [
            *["best_dose", "family_spread", "gaps_of_families", "gaps_over_layers", "in_ranges"],
            *["sparsity_match"],
        ],
    },
)
