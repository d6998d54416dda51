"""Chapter 8: runs of several models and seeds beside each other."""

from saema_utils.chapters import face

__getattr__, __dir__ = face(__name__, "tables", "figures", "findings")
