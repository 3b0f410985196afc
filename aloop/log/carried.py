"""What is put into a log from elsewhere, and the rows of a log as a checkpoint carries them.

These are a column of times and values for each key.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Final, cast

import numpy as np

from aloop.errors import LogBehindError
from aloop.log.records import EPOCH_END, RUN_START, STATUS, Changes, Row, Status, each_change
from aloop.log.values import encode
from aloop.protocols import Record

__all__ = ["BOOKKEEPING", "as_columns", "behind", "put_back_row", "put_on_top", "put_rows"]

BOOKKEEPING: Final = frozenset({"saved_to", "checkpoint_seconds", "checkpoint_bytes"})
"""What is recorded of a checkpoint after it was saved, in the row that it is of."""

Columns = dict[str, dict[str, Any]]


def behind(log: str, state: Mapping[str, Any], sequence: int | None) -> LogBehindError:
    """Give the error for a log that lacks what a state goes on from.

    Parameters:
        log: how messages call it.
        state: of a log, as a checkpoint has it.
        sequence: how many commit points of that run the log has, None if it has none of it.
    """
    return LogBehindError(
        f"the log {log} has run {state['run'][:8]} up to commit point {sequence or 0}"
        f"{'' if sequence else ' (nothing of it)'}, but the checkpoint belongs to commit point "
        f"{state['sequence']}; expected the log that the run wrote, which is at or after its "
        "checkpoints; restore that file, with its -wal if there is one, or leave the log out with "
        "Load(…, load_log=False)"
    )


def as_columns(rows: Mapping[int, Row]) -> Columns:
    """Give the records by key, as arrays where that keeps what they are."""
    found: dict[str, tuple[list[int], list[Record]]] = {}
    for time, row in list(rows.items()):  # at once, for another thread may make a row
        for key, value in list(row.items()):
            times, values = found.setdefault(key, ([], []))
            times.append(time)
            values.append(value)
    return {
        key: {"times": np.array(times, np.int64), "values": _column(values)}
        for key, (times, values) in found.items()
    }


def _column(values: list[Record]) -> Any:
    kinds: set[object] = {type(value) for value in values}
    if kinds == {float}:
        return np.array(values, np.float64)
    if kinds == {int}:
        return np.array(values, np.int64)
    return values


def _each_record(columns: Columns) -> Iterator[tuple[int, str, Record]]:
    for key, column in columns.items():
        values = column["values"]
        if isinstance(values, np.ndarray):
            values = cast("list[Record]", values.tolist())
        for time, value in zip(column["times"].tolist(), values, strict=True):
            yield time, key, value


def put_on_top(changes: Changes, status: Status, rows: MutableMapping[int, Row]) -> None:
    """Put what was written before a run was read from its file on top of what was read."""
    for place, (time, key, value) in enumerate(each_change(list(changes))):
        assert time != RUN_START, "an unread log cannot be resumed"
        if time == EPOCH_END:
            changes[3 * place : 3 * place + 3] = status.append_epoch_end(value[1])
        else:
            records = status if time == STATUS else rows[time]
            records.restore({key: value})


def put_rows(rows: MutableMapping[int, Row], columns: Columns) -> None:
    """Write the records of columns into the rows that they are of."""
    for time, key, value in _each_record(columns):
        rows[time][key] = value


def put_back_row(row: Row, records: Mapping[str, Record]) -> None:
    """Make a row what it was, writing no more than that takes."""
    for key in row.keys() - records.keys() - BOOKKEEPING:
        del row[key]
    for key, value in records.items():
        if key not in row or encode(row[key]) != encode(value):
            row[key] = value
