"""What is wrong with a file, said in one sentence."""


class FormatError(ValueError):
    """A file that is no compact file, or a damaged, truncated or lying one. The message names the file."""
