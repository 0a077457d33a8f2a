"""Plan and stages of a study: search, confirmation, final test."""
