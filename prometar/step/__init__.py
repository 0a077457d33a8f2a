"""The pure step: (model, method, state, batch) -> state; no file, no dataset, no Ray."""
