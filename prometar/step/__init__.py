"""Training step as a pure function (model, method, state, batch) -> state, without files, datasets or Ray."""
