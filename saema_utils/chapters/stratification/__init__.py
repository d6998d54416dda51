"""Chapter 3: how noise moves the rank of every representation, and what that is worth as evidence."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": [
            "concept_activations",
            "control_verdicts",
            "error_rates",
            "few_levels",
            "noise_rank_table",
            "rank_gain_by_place",
            "ranks_by_noise_kind",
            "ranks_by_tolerance",
            "ranks_of_distinct_contexts",
            "ranks_with_sinks",
            "recovered_ranks",
            "representations",
            "stratification_table",
            "stratification_verdicts",
            "subspace_drift_table",
            "tucker_tensor",
            "verdicts_by_noise_kind",
        ],
        "figures": [
            "advantage_forest",
            "drift_curves",
            "gain_against_repeats",
            "noise_kinds",
            "noise_units",
            "rank_against_noise",
            "repeated_contexts",
            "sink_ranks",
            "tolerance_map",
            "toy_spectra",
        ],
        "findings": [
            "advantages",
            "drift_near_one_rms",
            "flagged_by_test",
            "gains_that_are_repeats",
            "in_short",
            "rank_by_sinks",
            "recovered_by_noise",
            "stratified_concepts",
            "tolerances_matter",
        ],
    },
)
