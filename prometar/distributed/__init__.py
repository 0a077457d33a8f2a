"""Start or join Ray."""
