"""What a job is: its words, rows, states, files and messages. No HTTP and no PyTorch; shared by api and worker."""
