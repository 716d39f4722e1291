"""Which rank holds which experts: chosen from measured usage, cut out of an artifact, and proven together.

Dimension letters: L layers with a mixture, E experts of one, N ranks, K chosen per token.
"""
