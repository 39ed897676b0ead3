"""How the project says that the user can mend something."""


class UserError(Exception):
    """A mistake that the user can mend; the text names the thing, the value found and the next command."""
