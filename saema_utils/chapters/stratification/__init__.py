"""Chapter 3: how noise moves the rank of every representation, and what that is worth as evidence."""

from saema_utils.chapters import face

__getattr__, __dir__ = face(__name__, "tables", "figures", "findings", "sketch")
