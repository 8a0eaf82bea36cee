"""Measures edits against where things truly are: cases, methods, rulers, studies, reports."""
