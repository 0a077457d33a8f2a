"""Measurements of training beside accuracy. They do not change it."""
