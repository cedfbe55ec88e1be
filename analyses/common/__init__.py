"""What several analyses need: columns, losses, means, correlations, repeated tokens."""
