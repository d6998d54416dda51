"""Chapter 9: six families of autoencoder at one sparsity, and one family at several depths and from several starts."""

from saema_utils.chapters import face

__getattr__, __dir__ = face(__name__, "tables", "replicates", "figures", "findings")
