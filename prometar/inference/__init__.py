"""Trained prompts as a classifier, as a file and as a program; nothing of studies is imported."""

from prometar.inference.classifier import Classifier, Predictions, load

__all__ = ["Classifier", "Predictions", "load"]
