"""Benchmark protocols as grids of runs, and tables that compare their results with published ones."""
