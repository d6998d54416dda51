"""What does the language model compute on those words?

Prompts go in; the residual stream comes out, with its mask, and vectors can be put back into the model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loading": ["load_language_model"],
        "residual_stream": ["ConceptActivations", "capture_concept", "capture_residual_stream"],
        "splice": ["spliced_losses"],
    },
)
