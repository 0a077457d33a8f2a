"""What a study does before and after its search."""
