"""Chapter 7: every claim judged under every defensible analysis, and beside other finished runs."""

from saema_utils.chapters import face

__getattr__, __dir__ = face(__name__, "tables", "figures", "findings")
