"""Formats of documents, one file for each. ``table.py`` says which suffix means which."""
