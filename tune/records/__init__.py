"""Typed records of a study and the folder that holds them."""
