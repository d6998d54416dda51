"""Chapter 1: the language model, the activations of its concepts, and those of its corpus."""

from saema_utils.chapters import face

__getattr__, __dir__ = face(__name__, "tables", "corpus", "figures", "findings")
