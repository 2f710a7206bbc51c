"""Experts across devices: four forms with one signature and one meaning."""
