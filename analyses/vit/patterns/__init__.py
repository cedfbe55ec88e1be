"""Attention maps of a vision transformer, sampled, coded and clustered."""
