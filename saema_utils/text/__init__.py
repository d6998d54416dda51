"""Which words are asked about, and in which sentences?

A study goes in; prompts of concepts, running text and their tokens come out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "concepts": ["ConceptPrompts", "build_prompts"],
        "corpus": ["corpus_tokens"],
        "tokens": ["special_tokens", "tokenize"],
    },
)
