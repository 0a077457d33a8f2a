"""Parts of one's own: found by name, given their settings, told apart by their code, sent to workers."""
