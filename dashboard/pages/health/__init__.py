"""The page of a training's attention: entropy over steps, and alerts."""
