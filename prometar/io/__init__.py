"""Files, folder locks, file systems by URL, YAML from users, custom components."""
