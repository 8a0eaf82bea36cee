"""Faces drawn from continuous factors, with the exact geometry behind every picture."""
