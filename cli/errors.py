"""What the command tells its user in one sentence before it exits with a code other than 0."""


class CommandError(Exception):
    """The command cannot do what was asked; the message is for people."""


class ServerFailed(CommandError):
    """A server of the local stack did not start; the message names its log."""
