"""Hyperparameter studies for CLIP prompt learning with ProMetaR."""

__version__ = "0.1.0"
