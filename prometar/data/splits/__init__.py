"""Few-shot draws, the split into base and new classes, and objectives."""
