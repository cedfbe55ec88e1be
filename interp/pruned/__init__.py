"""Pruned checkpoints: the code that travels with them, and how they open under old numbers."""
