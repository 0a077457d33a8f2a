"""What a data set is, where it lies and what it lists."""
