"""A study's folder: written and read."""
