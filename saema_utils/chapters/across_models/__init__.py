"""Chapter 7: runs of several models and seeds beside each other."""
