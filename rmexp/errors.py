"""The errors a user can cause. Each message says what is wrong, where, and what to do."""


class RmexpError(Exception):
    """Base of every error that a user can mend; commands print it as one line."""


class ConfigError(RmexpError):
    """A setting or a model that cannot work as configured."""


class DataError(RmexpError):
    """A data set or a file whose content cannot be used."""


class ScoreError(RmexpError):
    """Rewards that are missing, not finite or not reproducible."""
