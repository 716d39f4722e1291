"""Mixtures in code that nobody has described: found by structure, proven by probing.

A block is taken for a mixture only after its canonical form, `mocomp::route` and `mocomp::experts` on stacks of its own
parameters, gave what the block gives, in float64, at several shapes. What is not proven stays as it is.
"""

from mocomp.models.recognition.contract import Found, Missed, Recognition
from mocomp.models.recognition.search import recognise

__all__ = ["Found", "Missed", "Recognition", "recognise"]
