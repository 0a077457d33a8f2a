"""Measurements during training that do not affect it."""
