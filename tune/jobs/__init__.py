"""What a driver hands a worker, as plain data, and where its files lie."""
