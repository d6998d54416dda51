"""Chapter 4: what becomes of clusters, circles, dimensions and distances when a stream is coded sparsely?

A run's concepts go in; tables of local and global geometry, their pictures, and what they show come out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": [
            "circle_points_table",
            "circles_table",
            "clouds_of",
            "comparison_table",
            "geometry_table",
            "local_table",
            "map_table",
            "merged_words_table",
            "merging_table",
            "persistence_table",
            "ruler",
            "synthetic_merging",
            "uncertainty_table",
            "word_map_table",
        ],
        "figures": [
            "circle_grid",
            "comparison_forest",
            "dimension_intervals",
            "interactive",
            "map_of_tokens",
            "map_of_words",
            "map_to_hover",
            "merging_dots",
            "numbers_by_seed",
            "persistence_diagrams",
            "word_change_intervals",
        ],
        "findings": [
            "change",
            "cluster_agreement",
            "clusters_by_words",
            "fresh_merges",
            "moved_trees",
            "ruler_facts",
            "seed_spread",
            "share_of_copies",
            "significant_circles",
            "words_shape",
        ],
    },
)
