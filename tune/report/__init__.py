"""Report of a study: report.html, the terminal summary and what a notebook shows."""
