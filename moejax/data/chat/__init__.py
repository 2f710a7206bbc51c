"""Conversations: messages in the usual formats, a model's own template, the assistant's tokens."""
