"""Ask-and-tell store of a study's trials in an Optuna storage."""
