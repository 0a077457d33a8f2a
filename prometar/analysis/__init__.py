"""What training does beside the accuracy: measured without changing it."""
