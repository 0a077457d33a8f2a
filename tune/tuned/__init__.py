"""Comparison of methods at published settings and after tuning with equal budgets (`reproduce --tune`)."""
