"""Training of sparse autoencoders: activations in, a run of the workspace out."""
