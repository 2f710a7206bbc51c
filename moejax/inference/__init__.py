"""A trained model opened, and text generated with it."""
