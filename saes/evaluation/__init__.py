"""Evaluation of sparse autoencoders: reconstruction, losses, controls, behaviours."""
