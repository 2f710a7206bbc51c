"""Training: state, step, optimizer, metrics, checkpoints and the loop around them."""
