"""Many texts at once: requests that join and leave a running batch, with a paged cache."""
