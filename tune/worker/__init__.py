"""The Ray actor that trains trials."""
