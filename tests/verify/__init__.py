"""Tests of the proof itself; that it catches faults is in tests/test_verify_catches.py."""
