"""Conversions that are disturbed in every way, and gone on with."""
