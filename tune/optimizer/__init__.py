"""Ask and tell one Optuna study that outlives its processes."""
