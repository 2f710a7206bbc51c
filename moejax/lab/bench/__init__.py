"""Speed of a routed layer, always as a ratio to something measured in the same run."""
