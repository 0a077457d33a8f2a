"""Trained prompts as a classifier and as a file."""
