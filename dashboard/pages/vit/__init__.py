"""Pages of vision transformers: heads by layer, patterns, one head."""
