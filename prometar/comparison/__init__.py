"""Paired comparison of methods by dataset and seed."""
