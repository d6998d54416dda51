"""Chapter 8: six families of autoencoder at one sparsity, and one family at several depths."""
