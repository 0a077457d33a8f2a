"""The embedded default: the `textures` data set, the `mini` backbone, and the script that trained it."""
