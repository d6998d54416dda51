"""Chapter 1: the language model, the activations of its concepts, and those of its corpus."""
