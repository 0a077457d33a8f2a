"""Data plans, and streams of their batches from this process or Ray Data."""
