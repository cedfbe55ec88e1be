"""Losses of a drop by the tasks of lm-evaluation-harness."""
