"""Start or join Ray; what fits where."""
