"""The one exception that reaches a user as a single line."""


class UserError(Exception):
    """Something the user can mend: names the key or file, what is wrong with it, and what to type instead.

    The command line prints it as one line and exits with code 2; the Python API raises it.
    """
