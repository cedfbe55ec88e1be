"""Tokens of a vision transformer: who is attended to, and what their removal costs."""
