"""Components of methods, and their composition."""
