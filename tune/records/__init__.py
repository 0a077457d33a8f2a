"""Typed records of a study, and the folder that contains them."""
