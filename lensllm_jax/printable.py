r"""Text of others as people see it: no character moves the cursor, folds a line or turns it around.

Example:
    >>> print(printable("gpt2\x1b[2J\n"))
    gpt2\x1b[2J\n
"""


def printable(text: str) -> str:
    """The text with every character that has no picture written as its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
