"""The study: Optuna remembers, Ray executes."""
