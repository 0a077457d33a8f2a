"""Training of one run, with checkpoints and scoring."""
