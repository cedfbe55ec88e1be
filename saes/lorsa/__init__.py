"""Low-rank sparse attention: many heads of one value dimension, few active a token, in place of an attention layer."""
