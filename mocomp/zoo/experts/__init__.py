"""Mechanisms whose point is what an expert is, and not who chooses it; their lines of the table are in `entries.py`."""
