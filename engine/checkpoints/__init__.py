"""Files of weights: read any layout without executing it, write the canonical form."""
