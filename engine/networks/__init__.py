"""The networks, one file for each kind, their configs, and the kernels of frozen weights."""
