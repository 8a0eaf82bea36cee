"""What a client may ask for, and every check before a job is accepted."""
