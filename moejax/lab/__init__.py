"""The laboratory: runs compared, specialisation looked at, speed measured, cost planned."""
