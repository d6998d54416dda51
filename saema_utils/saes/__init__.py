"""How is an activation written in latents, and how well?

Activations go in; autoencoders, their controls, latents, reconstructions and fidelity come out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "coders": ["PcaCoder", "RandomDictionary", "SaeCoder"],
        "families": ["train_to_l0"],
        "fidelity": ["explained_variance", "measure_fidelity", "recovered_features"],
        "loading": ["load_sae"],
        "training": ["train_sae"],
    },
)
