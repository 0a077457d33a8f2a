"""Few-shot draws, base and new classes, objectives."""
