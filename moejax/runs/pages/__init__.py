"""What a run looks like: its records, drawn as a page."""
