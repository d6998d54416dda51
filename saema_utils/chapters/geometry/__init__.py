"""Chapter 4: what becomes of clusters, circles, dimensions and distances when a stream is coded sparsely?

A run's concepts go in; tables of local and global geometry, their pictures, and what they show come out.
"""

from saema_utils.chapters import face

__getattr__, __dir__ = face(__name__, "tables", "figures", "findings", "sketch")
