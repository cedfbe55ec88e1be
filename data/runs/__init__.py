"""Runs of a workspace: their folders, their records, and how one is written whole or not at all."""
