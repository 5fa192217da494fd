"""What reaches a user as a single line."""

import os


class UserError(Exception):
    """Something the user can mend: names the key or file, what is wrong with it, and what to type instead.

    The command line prints it as one line and exits with code 2; the Python API raises it.
    """


def explain_os_error(error: OSError) -> str:
    """One line for a file that cannot be read or written."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
    return f"{name}: {error.strerror or error}; free space or choose another folder with paths.outputs=FOLDER"
