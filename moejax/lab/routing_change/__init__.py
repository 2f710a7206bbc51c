"""What training on has done to the routing of a model."""
