"""Named errors: our class beside the builtin that a caller would expect.

Every message says what was given, what is accepted and what to do.
"""


class FishertopeError(Exception):
    """Base of every error that fishertope raises on purpose."""


class InvalidInputError(FishertopeError, ValueError):
    """A value has the wrong shape, range or content (NaN, negative Fishers, zero components)."""


class ArrayTypeError(FishertopeError, TypeError):
    """Arrays of a library, dtype or device that the chosen backend does not take."""


class BackendNotFound(FishertopeError, ValueError):
    """No backend of that name is registered."""


class BackendUnavailable(FishertopeError, ImportError):
    """The backend is registered, but a package that it needs is not installed."""


class PackageMissingError(FishertopeError, ImportError):
    """A feature needs a package that is not installed; the message names the extra."""


class KernelUnsupported(FishertopeError, NotImplementedError):
    """The backend does not provide that kernel and declares no fallback."""


class EngineNotFound(FishertopeError, TypeError):
    """No model engine is registered for this type of model."""


class DegenerateArrangement(InvalidInputError):
    """Some rows are linearly dependent, or too nearly so, where general position is needed."""


class DegenerateDirection(InvalidInputError):
    """A direction is orthogonal to a row, or too nearly so: the sign pattern is not defined."""


class InfeasiblePattern(InvalidInputError):
    """No direction has this sign pattern on the given rows."""


class CorruptFileError(FishertopeError, ValueError):
    """A file of ours is truncated, altered, or not what its header says."""


class ForeignFolderError(FishertopeError, FileExistsError):
    """The output folder holds something that fishertope did not write."""


class ResultsExistError(FishertopeError, FileExistsError):
    """Finished or unfinished results of ours are in the way, and overwriting was not asked for."""


class WriteFailedError(FishertopeError, OSError):
    """The operating system refused a write (permission, full disk, read-only file system)."""


class DataMissingError(FishertopeError, FileNotFoundError):
    """A data set or model that does not come with the package has not been fetched."""


class FetchFailedError(FishertopeError, OSError):
    """A package registry's client could not be run, failed, or brought other bytes than pinned."""


class RankLostError(FishertopeError, RuntimeError):
    """Another process of the same run was killed, ended, or never started."""


class SolveFailedError(FishertopeError, RuntimeError):
    """A solver stopped without an answer and ``on_failure="raise"`` was asked for."""


class ConvergenceWarning(UserWarning):
    """A solver stopped before its stopping rule held; the result says how far it came."""


class ConversionWarning(UserWarning):
    """A choice was made that costs time or accuracy and that the caller may want to know."""


class StoppedError(FishertopeError):
    """The process was asked to end (Ctrl-C, SIGTERM); what was finished is kept."""
