"""Trained prompts as a classifier and as a file; nothing of studies is imported."""
