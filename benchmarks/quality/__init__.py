"""Judges edits by where things truly are: cases, methods, rulers, tables."""
