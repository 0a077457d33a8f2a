"""Data: catalog -> few-shot draw -> plan (a pure value) -> stream of batches."""
