"""Pages of heads: layers by head, and one head."""
