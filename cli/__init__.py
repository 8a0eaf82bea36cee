"""The dragqueue command: a client of the HTTP API, offline engine commands, and the local stack."""
