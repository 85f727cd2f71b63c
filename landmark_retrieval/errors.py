"""The one exception for mistakes a person can mend: a missing file, a wrong key, a damaged shard."""


class LandmarkRetrievalError(ValueError):
    """What is wrong, where, and what to do about it, in one sentence.

    The command line prints the sentence without a traceback and ends with exit code 2.
    """


class Terminated(SystemExit):
    """A run was asked to stop (SIGTERM) and has saved what it did; the same command carries on.

    The command line prints the sentence and ends with exit code 143.
    """

    code = 143
