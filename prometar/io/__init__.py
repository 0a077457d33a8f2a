"""Files whole or absent, locked folders, file systems by URL, YAML from users."""
