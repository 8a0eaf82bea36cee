"""Errors of the local stack; each message is one sentence for people."""


class StackError(Exception):
    """The local stack cannot do what was asked."""


class ServerFailed(StackError):
    """A process of the local stack did not start, or has ended; the message names its log."""
