"""What happens when meanings are pulled apart?

Latents, labels and a decoder go in; edited latents, doses, their effects and trained separation come out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"doses": ["dose_response"], "edits": ["scale_separation"], "search": ["optimise_separability"]},
)
