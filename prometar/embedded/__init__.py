"""Embedded datasets and the `mini` backbone."""
