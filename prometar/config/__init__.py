"""Typed settings of runs, and the recipe of each method."""
