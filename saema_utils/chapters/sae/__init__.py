"""Chapter 2: the sparse autoencoder, what it is compared with, and how good each is."""

from saema_utils.chapters import face

__getattr__, __dir__ = face(__name__, "tables", "contexts", "coders", "figures", "findings")
