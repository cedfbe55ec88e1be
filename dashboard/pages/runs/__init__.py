"""Runs of the workspace: listed, named, deleted and had back; several side by side."""
