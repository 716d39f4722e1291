"""Quantisation: how weights are stored (`formats/`) and how the stored numbers are chosen (`algorithms/`)."""
