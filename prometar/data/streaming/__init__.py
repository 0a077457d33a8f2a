"""Image orders, and streams of their batches from this process or Ray Data."""
