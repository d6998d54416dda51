"""Chapter 2: the sparse autoencoder, what it is compared with, and how good each is."""
