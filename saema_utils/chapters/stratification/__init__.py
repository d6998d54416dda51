"""Chapter 3: how noise moves the rank of every representation, and what that is worth as evidence."""
