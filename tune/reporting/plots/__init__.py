"""The reports' plots: HTML fragments made from trial records, a module a theme."""
