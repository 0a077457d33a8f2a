"""Trained prompts as a classifier and as a file. Works without Ray and Optuna."""
