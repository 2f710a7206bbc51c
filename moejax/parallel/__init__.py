"""Experts across devices."""
