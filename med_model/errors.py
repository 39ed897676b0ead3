"""The error that stands for a user's mistake."""


class UserError(Exception):
    """A mistake that the user can correct. The message names the thing, the value found and the next command."""
