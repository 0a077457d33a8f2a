"""A run's typed settings, and each method's recipe."""
