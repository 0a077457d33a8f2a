"""What the package carries: the embedded suite, the `mini` backbone, and the script that trained it."""
