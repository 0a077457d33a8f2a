"""Measurements of a training run that do not affect its results."""
