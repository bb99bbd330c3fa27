"""The error that a user can act on."""


class UserError(ValueError):
    """An error that the user of the program can fix: one line that names the culprit and the remedy, without a traceback.

    Attributes:
        status: exit status of the process: 2 for wrong usage, 1 for a failure while running.
    """

    status = 2
