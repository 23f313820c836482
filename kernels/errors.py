"""The base of all errors that sdrt raises on purpose.

It lies here because every folder may import this one, and it imports nothing.
"""


class SdrtError(Exception):
    """Something that the user can mend; what is no ``SdrtError`` is a bug, or torch's word.

    Each argument is one problem in one line: what was wrong, what was expected, what to do.
    """

    @property
    def problems(self) -> tuple[str, ...]:
        """The lines of the message, one a problem."""
        return tuple(" ".join(str(problem).splitlines()) for problem in self.args)

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))
