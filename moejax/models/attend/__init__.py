"""Softmax attention in its forms, as functions of queries, keys and values."""
