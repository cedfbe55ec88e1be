"""A training shared by processes: whole autoencoders, rows of a batch, or features of one autoencoder."""
