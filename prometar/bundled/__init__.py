"""What the package carries: the embedded suite of data sets, the `mini` backbone, the script that trained it."""
