"""What reaches a user as a single line."""

import os
import unicodedata


class UserError(Exception):
    """Something the user can mend: names the key or file, what is wrong with it, and what to type instead.

    The command line prints it as one line and exits with code 2; the Python API raises it.
    """


def has_working_directory() -> bool:
    """Whether the folder that this process works in is still there: relative paths lead nowhere without it."""
    try:
        return os.path.isdir(os.getcwd())
    except FileNotFoundError:
        return False


def printable(text: str) -> str:
    """Text out of a file without what a terminal obeys instead of showing it, such as escape sequences; lines stay lines."""
    return "".join("�" if letter != "\n" and unicodedata.category(letter) in ("Cc", "Cf", "Cs") else letter for letter in text)


def explain_os_error(error: OSError) -> str:
    """One line for a file that cannot be read or written."""
    if isinstance(error, FileNotFoundError) and not has_working_directory():
        return "the folder that this was started in is gone; change to one that is there (cd FOLDER)"
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
    return f"{name}: {error.strerror or error}; free space or choose another folder with paths.outputs=FOLDER"
