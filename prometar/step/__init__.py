"""The pure step: (model, method, state, batch) -> state; no file, no data set, no Ray."""
