"""The parts a method is composed of: each axis has an identity, and one file."""
