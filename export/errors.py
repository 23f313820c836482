"""Errors that several parts of a build raise."""

from sdrt.kernels.errors import SdrtError


class BackendError(SdrtError):
    """A backend that does not exist or cannot build what is asked for; it says what can."""


class PackageError(SdrtError):
    """A package that cannot be made or does not run; the message names it and what to do."""
