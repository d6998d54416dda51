"""Chapter 1: the language model, the activations of its concepts, and those of its corpus."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "concepts": ["concept_activations"],
        "corpus": ["corpus_activations"],
        "figures": [
            "norms_by_position",
            "order_by_layer",
            "similarity_matrices",
            "variance_with_and_without_sink",
            "word_circles",
        ],
        "findings": ["first_components", "neighbours_and_others", "rings", "sink_gap"],
        "model": ["language_model"],
        "tables": [
            "concept_table",
            "cyclic_order",
            "norm_table",
            "places_around",
            "variance_table",
            "word_map",
            "word_maps",
            "word_similarities",
        ],
    },
)
