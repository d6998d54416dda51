"""Is the representation stratified: does noise change its rank?

Tensors of prompts, positions and features go in; spectra, ranks and their course under noise come out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "noise": ["noise_rank_sweep"],
        "spectra": ["covariance_spectrum", "effective_rank", "numerical_rank", "participation_ratio", "unfold"],
        "token_cloud": ["TokenCloud"],
    },
)
