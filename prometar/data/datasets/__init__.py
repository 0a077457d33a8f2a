"""Datasets: locations, layouts and lists of images."""
