"""Text for terminals and logs out of what a file says: no control characters, and never long."""

MAX_MESSAGE = 1000  # characters
MAX_QUOTED = 100


def printable(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return the text with what is no printable character escaped, and cut after `limit` characters."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:limit])
    return shown if len(text) <= limit else f"{shown}... ({len(text)} characters)"


def quote(value: object) -> str:
    """Return a value for a message: a text in quotes, a number as it is, of anything else its kind."""
    if isinstance(value, str):
        return f"'{printable(value, MAX_QUOTED)}'"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return str(value) if isinstance(value, (int, float, bool, type(None))) else f"a {type(value).__name__}"
