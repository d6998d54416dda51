"""Chapter 5: does separation cause reconstruction, after training, during it, and by itself?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": [
            "beyond_scaling_table",
            "coefficient_effects_table",
            "correlation_table",
            "dose_response_table",
            "effects_table",
            "example_concept",
            "language_model_table",
            "optimised_table",
            "optimum",
            "optimum_table",
            "separation_error_correlation",
        ],
        "training": ["gaming_table", "natural_variation_table", "reversed_cause_table", "separability_training_table"],
        "figures": [
            "dose_curves",
            "dose_explorer",
            "effect_forest",
            "gaming",
            "interactive",
            "misleading_correlation",
            "natural_variation",
            "reversed_cause",
            "search_courses",
            "spliced_effects",
            "training_changes",
        ],
        "findings": [
            "at_largest_coefficient",
            "causal_verdict",
            "costs_at_the_word",
            "gaming_ratios",
            "in_short",
            "mean_by_arm",
            "natural_relation",
            "reversed_changes",
            "search_costs",
            "sides",
            "verdict_counts",
            "with_parabola",
        ],
    },
)
