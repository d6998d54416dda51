"""Chapter 6: the authors' protocol on their prompts and on ours, for codes that learned and codes that did not."""

from saema_utils.chapters import face

__getattr__, __dir__ = face(__name__, "tables", "figures", "findings")
