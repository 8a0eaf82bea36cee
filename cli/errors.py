"""What the command tells its user in one sentence before it exits with a code other than 0."""


class CommandError(Exception):
    """The command cannot do what was asked; the message is for people."""
