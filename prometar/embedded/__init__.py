"""Rendered datasets and the backbone `mini`, which need no download."""
