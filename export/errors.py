"""Errors that several parts of a build raise."""


class BackendError(ValueError):
    """A backend that does not exist or cannot build what is asked for; it says what can."""


class PackageError(RuntimeError):
    """A package that cannot be made or does not run; the message names it and what to do."""
