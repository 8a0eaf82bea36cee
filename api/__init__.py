"""The HTTP API: validates requests, calls jobs, and answers. It never loads PyTorch."""
