"""Search spaces as data, and points in them."""
