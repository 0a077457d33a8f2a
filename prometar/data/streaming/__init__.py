"""A plan of pixels, run in this process or on Ray Data."""
