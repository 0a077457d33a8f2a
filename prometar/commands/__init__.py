"""Sub-commands of `prometar`, a file a command."""
