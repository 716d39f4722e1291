"""Weights that are never all in memory: where they lie, what becomes of them, and how they are written."""
