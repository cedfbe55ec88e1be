"""Processes that do one job together: who they are, what they exchange, how all end when one does."""
