"""What is near what, how many dimensions, which loops?

Points and labels go in; clusters, poles, trees, dimensions, Betti numbers, circles and matchings come out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "clusters": ["LocalRepresentations", "find_local_representations"],
        "dimension": ["intrinsic_dimension"],
        "matching": ["procrustes_disparity"],
        "pole_measures": ["aedp", "average_geodesic_distance", "mst_weight", "poles"],
        "topology": ["betti_numbers"],
    },
)
