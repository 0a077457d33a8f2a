"""Trained prompts as a classifier and as a file; nothing of studies is imported."""

from prometar.inference.classifier import Classifier, Predictions, load

__all__ = ["Classifier", "Predictions", "load"]
