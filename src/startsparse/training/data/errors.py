"""What can be wrong with data on disk."""


class MissingData(FileNotFoundError):
    """The data set is nowhere to be had."""


class DamagedData(ValueError):
    """A data file is there but cannot be what it should be. The message names the file."""
