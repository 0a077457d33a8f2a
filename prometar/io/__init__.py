"""Files, folder locks, stores (local folders and URIs), YAML from users, and custom components."""
