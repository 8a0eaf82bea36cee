"""The private servers from pip wheels, and the processes of `dragqueue up` and of the tests."""
