"""Mechanisms that differ in which experts a token has, written after their papers; one idea a file."""
