"""Frozen CLIP towers with prompts at any layer and hand-written exact derivatives."""
