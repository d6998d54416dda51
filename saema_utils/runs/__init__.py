"""A run on disk: where results lie, how they are kept whole, and when they must be made anew.

A study goes in; a directory with hashed tables, figures, tensors and a manifest comes out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "directory": ["RunDirectory"],
        "files": ["atomic_path", "cache_dir"],
        "freshness": ["digest", "file_digest", "source_digest"],
    },
)
