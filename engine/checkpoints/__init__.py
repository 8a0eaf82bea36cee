"""Files of weights: import of any layout without executing it, and the canonical safetensors files."""
