"""TensorBoard, MLflow and W&B."""
