"""Chapter 4: local and global geometry of every concept, before and after sparse coding."""
