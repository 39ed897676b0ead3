"""Define the error that every script raises for a mistake of the user."""


class UserError(Exception):
    """Report a mistake of the user. The message names the option or file, the value found and the next step."""
