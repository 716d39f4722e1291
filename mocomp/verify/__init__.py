"""Proof: the original and the artifact side by side, on inputs of other shapes than the traced ones."""
