"""Jobs: their specifications, rows, states, files and messages, shared by api and worker. No HTTP and no PyTorch."""
