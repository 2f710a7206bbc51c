"""Errors whose message is all that a user needs: printed without a traceback, exit code 2."""


class UserError(Exception):
    """Something the user can put right; the message says how."""

    exit_code = 2


class ConfigError(UserError):
    """A setting that cannot work; the message names it, its value and what would be right."""


class RunError(UserError):
    """A run that cannot start or go on: its directory, its checkpoints, or its losses."""


class InUseError(RunError):
    """Another training is running in the directory of a run."""


class CheckpointError(UserError):
    """A checkpoint in Hugging Face's format that cannot be trusted, read or understood."""


class DivergedError(RunError):
    """Training was stopped because its losses were no longer finite."""

    exit_code = 1
