"""What sparse coding does to the geometry of a language model's representations.

The names below are the public contract; each is imported from its folder when first used, so that
``import saema_utils`` costs nothing.
"""

import os

import lazy_loader

# Read once, when torch is loaded: what Apple's device cannot do (pairwise distances, say) is then done on the CPU.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
# Likewise: threads that wait for one another sleep. Spinning, they burn the core that one of them needs as soon as
# the machine does anything else, and a chapter takes many times as long; on a quiet machine it costs a few percent.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

__getattr__, __dir__, _names = lazy_loader.attach(
    __name__,
    submod_attrs={
        "study": ["STUDIES", "Study", "get_study"],
        "errors": ["SaemaError"],
        "runs": ["RunDirectory"],
        "notebook": ["finding", "open_run", "show", "table"],
        "exercises": ["check"],
        "text": ["ConceptPrompts", "build_prompts"],
        "model": ["ConceptActivations", "capture_concept", "capture_residual_stream", "load_language_model"],
        "saes": ["load_sae", "train_sae"],
        "stratification": [
            "covariance_spectrum",
            "effective_rank",
            "noise_rank_sweep",
            "numerical_rank",
            "participation_ratio",
            "unfold",
        ],
        "geometry": [
            "LocalRepresentations",
            "aedp",
            "average_geodesic_distance",
            "betti_numbers",
            "find_local_representations",
            "intrinsic_dimension",
            "mst_weight",
            "poles",
            "procrustes_disparity",
        ],
        "intervention": ["dose_response", "optimise_separability", "scale_separation"],
    },
)
__all__ = ["__version__", *_names]
