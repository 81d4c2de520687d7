"""Rung 2: count longer histories, and back off well."""
