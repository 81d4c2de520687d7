"""Serve runs to OpenAI's clients: one process, every rung."""
