"""Calibration: the original model run over data of the user's, for what weights alone do not tell."""
