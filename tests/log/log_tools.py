"""What the log's tests share: exact comparison, files that cannot be written, reopening."""

import math
import threading

import numpy as np
from log_helpers import change, query

from aloop.log.base import TrainingLog
from aloop.log.readers import Readers
from aloop.log.reading import END_OF_TIME, History
from aloop.log.sqlite import SQLiteLog

FAIL = """
    CREATE TRIGGER fail BEFORE INSERT ON stored_entries
    BEGIN SELECT RAISE({}, 'the disk is on fire'); END
"""


def exact(value):
    """Give something that equals another such thing only for a value of the same type.

    NaN equals itself, -0.0 does not equal 0.0 and True not 1; dictionaries compare in order.
    Values in the log count as the ordinary lists and dictionaries they stand for.
    """
    if isinstance(value, np.ndarray):
        return "array", value.dtype.str, value.shape, exact(value.tolist())
    if isinstance(value, dict):
        return "dict", [(exact(k), exact(v)) for k, v in value.items()]
    if isinstance(value, list):
        return "list", [exact(item) for item in value]
    if isinstance(value, tuple):
        return "tuple", [exact(item) for item in value]
    if isinstance(value, float):
        return type(value).__name__, "nan" if math.isnan(value) else value.hex()
    return type(value).__name__, value


def rows_of(log):
    """Give the rows that have records as plain dictionaries."""
    return {time: dict(log[time]) for time in log}


def break_writing(database, how="ABORT"):
    """Make the database refuse every new record from now on."""
    change(database, FAIL.format(how))


def mend_writing(database):
    change(database, "DROP TRIGGER fail")


def entries_of(database, log):
    return query(
        database, "SELECT time, key, value FROM entries WHERE run = ? ORDER BY 1, 2", log.h_uuid
    )


async def reopen(log, run=None):
    """Read a run of the log's file, by default the log's own, into a new log."""
    async with SQLiteLog(log.database, run or log.uuid) as other:
        pass
    return other


def load_run(database, run):
    """Read a whole run from the file: what the file says of it, and its rows."""
    readers = Readers(database)
    try:
        history, head = History.of(readers, run)
        return head, history.rows(0, END_OF_TIME)
    finally:
        readers.close()


def connection_threads():
    return [t for t in threading.enumerate() if "connection_worker" in t.name]


def join_connection_threads():
    """Wait for the threads that are about to end; give those that do not end."""
    for thread in connection_threads():
        thread.join(5)
    return connection_threads()


def make_log(kind, database):
    return TrainingLog() if kind == "memory" else SQLiteLog(database)
