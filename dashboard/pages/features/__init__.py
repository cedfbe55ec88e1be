"""Pages of features: the table, one feature, the heads a layer's features name."""
