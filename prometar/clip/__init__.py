"""Frozen CLIP towers with prompts at any layer, through an exact fast path."""
