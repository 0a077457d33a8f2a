"""`prometar ...`, a file a command."""
