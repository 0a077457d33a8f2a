"""Files, locked folders, file systems by URL, YAML from users, custom components."""
