"""The page, the terminal and the comparison of two studies."""
