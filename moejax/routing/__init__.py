"""Choosing experts and seating choices: pure functions over arrays."""
