"""The one thing that readers of model files say when a file cannot be what it claims to be."""


class DamagedFile(Exception):
    """The message names the file and what is wrong with it."""
