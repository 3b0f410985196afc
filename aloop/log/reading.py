"""Reading a run back from a log file, over a connection that cannot write."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aloop.errors import LogFileError, UnknownRunError
from aloop.log.schema import LINEAGE
from aloop.log.values import DELETED, decode

__all__ = ["LoadedRun", "load_run"]


@dataclass(slots=True)
class LoadedRun:
    """A run as it is in the file, with the rows of its ancestors that count for it."""

    run_id: int
    sequence: int
    name: str | None
    hyperparameters: dict[str, Any] | None
    status: dict[str, Any]
    rows: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])


def load_run(database: Path, run: str) -> LoadedRun:
    """Read the run of the hexadecimal id `run`; `UnknownRunError` if the file has none."""
    try:
        return _load_run(database, run)
    except sqlite3.Error as error:
        raise LogFileError(
            f"the run {run!r} cannot be read from {database}: {error}; expected an undamaged log; "
            "restore the file from a copy, or begin a new one"
        ) from error


def _load_run(database: Path, run: str) -> LoadedRun:
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        # One transaction, so that a run which is being written is seen at one of its boundaries.
        connection.execute("BEGIN")
        lineage: list[tuple[int, int]] = connection.execute(LINEAGE, (run,)).fetchall()
        if not lineage:
            latest = connection.execute("SELECT run FROM runs ORDER BY id DESC LIMIT 3").fetchall()
            raise UnknownRunError(
                f"{database} has no run {run!r}; expected the id of one of its runs (the latest: "
                f"{', '.join(name for (name,) in latest) or 'none'}); "
                "SELECT run, started_at FROM runs lists them"
            )
        loaded = _load_head(connection, lineage[0][0])
        # The furthest ancestor first, so that nearer ones write over it.
        for run_id, last_time in reversed(lineage):
            _load_rows(connection, loaded.rows, run_id, last_time)
        return loaded


def _load_head(connection: sqlite3.Connection, run_id: int) -> LoadedRun:
    name, hyperparameters, sequence = connection.execute(
        "SELECT name, hyperparameters, sequence FROM runs WHERE id = ?", (run_id,)
    ).fetchone()
    status = connection.execute(
        "SELECT keys.key, value FROM stored_status "
        "JOIN keys ON keys.id = stored_status.key WHERE run = ?",
        (run_id,),
    )
    return LoadedRun(
        run_id=run_id,
        sequence=sequence,
        name=name,
        hyperparameters=None if hyperparameters is None else decode(hyperparameters.encode()),
        status={key: decode(value) for key, value in status if value != DELETED},
    )


def _load_rows(
    connection: sqlite3.Connection, rows: dict[int, dict[str, Any]], run_id: int, last_time: int
) -> None:
    records = connection.execute(
        "SELECT time, keys.key, value FROM stored_entries "
        "JOIN keys ON keys.id = stored_entries.key WHERE run = ? AND time <= ?",
        (run_id, last_time),
    )
    for time, key, value in records:
        if value == DELETED:
            rows.get(time, {}).pop(key, None)
        else:
            rows.setdefault(time, {})[key] = decode(value)
