"""A run on disk: written and read here, and nowhere else."""
