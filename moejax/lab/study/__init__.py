"""Configs trained under equal conditions, and compared."""
