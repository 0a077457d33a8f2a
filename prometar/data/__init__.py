"""From the name of a dataset to batches: catalog -> few-shot split -> image order -> stream."""
