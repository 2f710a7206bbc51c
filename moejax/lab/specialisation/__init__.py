"""What each expert of a trained model takes."""
