"""A log as a pandas DataFrame; pandas is optional, and imported here alone."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from aloop.errors import MissingDependencyError
from aloop.log.series import Series

__all__ = ["as_dataframe"]


def as_dataframe(keys: Iterable[str], series: Callable[[str], Series]) -> Any:
    """Make a DataFrame with a row for each time that has records and a column for each key.

    Raises `MissingDependencyError` where pandas is not installed.
    """
    try:
        pd: Any = import_module("pandas")
    except ImportError as error:
        raise MissingDependencyError(
            "to_dataframe() needs pandas, which cannot be imported; expected it to be installed; "
            "install aloop[pandas], or use log.series(key), which gives numpy arrays"
        ) from error
    columns: dict[str, Any] = {}
    for key in keys:
        times, values = series(key)
        if len(times):
            columns[key] = pd.Series(values, index=times)
    frame = pd.DataFrame(columns)
    frame.index.name = "time"
    return frame.sort_index()
