"""Protocols of the field as grids of runs, and tables of their results beside published ones."""
