"""What a config will cost, before anything runs: arithmetic on its settings alone."""
