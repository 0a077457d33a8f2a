"""Parts of methods, and their composition."""
