"""Chapter 5: does separation cause reconstruction, after training, during it, and by itself?"""
