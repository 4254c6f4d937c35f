"""Errors meant for people: one line saying what was found, what was needed and what to do.

The command line prints the message and leaves with status 2; the traceback appears with `--debug` only.
Anything that is not a `UserError` is a defect of this program.
"""


class UserError(Exception):
    """Something the user can mend. `str(error)` is the one line they read."""


class ConfigError(UserError):
    """A config.json (or an option) asks for something this code does not implement, or contradicts itself."""


class CheckpointError(UserError):
    """The files of a checkpoint are missing, damaged, or do not fit the network its config describes."""


class DownloadError(UserError):
    """A checkpoint could not be fetched: no network, no such repository, no disk space, wrong content."""


class MemoryPlanError(UserError):
    """The checkpoint and its caches do not fit this machine."""


class RequestError(UserError):
    """A request cannot be rendered or run: bad messages, bad options, too long for the context."""


class TooLongError(RequestError):
    """A text has no room in the model's context, or in the memory for caches."""


class BusyError(RequestError):
    """Not now: too many requests are waiting, or the model was closed."""


class SessionError(UserError):
    """A session cannot be used as it was asked to: closed, busy, or a file that cannot be written or read."""
