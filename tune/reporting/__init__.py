"""Report page and terminal summary of a study."""
