"""Chapter 5: does separation cause reconstruction, after training, during it, and by itself?"""

from saema_utils.chapters import face

__getattr__, __dir__ = face(__name__, "tables", "training", "figures", "findings", "sketch")
