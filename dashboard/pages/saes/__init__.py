"""Pages of autoencoders: training runs and evaluations."""
