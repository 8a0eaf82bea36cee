"""Errors of the command; each message is one sentence for people, and the exit code is 1."""


class CommandError(Exception):
    """The command cannot do what was asked."""
