"""Linen modules: whole models."""
