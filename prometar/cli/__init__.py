"""Command line of `prometar`."""
