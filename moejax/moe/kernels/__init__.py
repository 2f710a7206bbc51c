"""The grouped feed-forward: every expert on its own rows, however many; one file a platform."""
