"""Methods compared in pairs: the same data set, the same seed."""
