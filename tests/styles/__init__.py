"""Mixtures as the code bases of the field write them, each after its published description and in words of its own.

They know nothing of mocomp: they are what recognition is tried on. `table.STYLES` names them all.
"""
