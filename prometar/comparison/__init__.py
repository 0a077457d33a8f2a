"""Paired comparison of methods: the same dataset, the same seed."""
