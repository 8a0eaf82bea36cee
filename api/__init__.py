"""HTTP in: validate, call jobs, answer. Never loads PyTorch."""
