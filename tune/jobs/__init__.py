"""What a driver hands a worker, and where its files lie."""
