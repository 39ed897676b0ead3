"""Define the error that every script raises for a mistake of the user."""


class UserError(Exception):
    """A mistake that the user can correct. The message names the thing, the value found and the next command."""
