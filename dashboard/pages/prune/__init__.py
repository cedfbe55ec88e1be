"""The page of pruning: curves, drops, exported checkpoints."""
