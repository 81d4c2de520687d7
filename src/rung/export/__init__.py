"""Runs to and from other tools' formats: ARPA, GGUF, Hugging Face folders, and Meta's own of Llama
3.
"""
