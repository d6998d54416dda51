"""Chapter 2: the sparse autoencoder, what it is compared with, and how good each is."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "coders": ["study_sae", "training_history"],
        "figures": [
            "concept_heatmap",
            "cross_entropy",
            "density_histogram",
            "features_found",
            "sparsity_frontier",
            "training_curve",
        ],
        "findings": ["frontier", "known_features", "reconstruction", "telling_latents", "workload"],
        "tables": ["concept_latents", "corpus_activations", "latent_density", "sae_evaluation", "sparsity_curve"],
    },
)
