"""The tables of a log file.

People query the table `runs` and the views `entries(run, time, key, value)`,
`status(run, key, value)` and `epochs(run, epoch, time)`, in which runs and keys are text. The
tables behind the views hold small integer ids for both: half the bytes of text ids.
`stored_entries` is clustered by run, key and time, so that a series is one range scan.
"""

from typing import Final

__all__ = ["APPLICATION_ID", "CREATE", "LINEAGE", "SCHEMA_VERSION"]

APPLICATION_ID: Final = 0x414C4F50
"""Marks a SQLite file as a log of aloop: "ALOP" in ASCII."""

SCHEMA_VERSION: Final = 1
"""Kept in ``PRAGMA user_version``; a file with a higher one is refused."""

# A BLOB holds the JSON of what SQLite has no type for (see `aloop.log.values`); booleans are
# shown as 0 and 1, so that SUM and AVG work on them.
_READABLE: Final = """
    CASE WHEN typeof(value) <> 'blob' THEN value
         WHEN value = CAST('true' AS BLOB) THEN 1
         WHEN value = CAST('false' AS BLOB) THEN 0
         ELSE CAST(value AS TEXT)
    END
"""

# Said so that DuckDB, which reads views by its own grammar, understands it too.
_THERE: Final = "(value IS NULL OR typeof(value) <> 'blob' OR length(value) > 0)"

CREATE: Final = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        run TEXT NOT NULL UNIQUE,       -- the hexadecimal id, log.h_uuid
        name TEXT,                      -- MainLoop(name=...)
        hyperparameters TEXT,           -- MainLoop(hyperparameters=...), as JSON
        started_at TEXT NOT NULL,       -- ISO 8601, UTC
        resumed_from TEXT,              -- the hexadecimal id of the run before
        forked_at INTEGER,              -- the last time of that run which counts for this one
        sequence INTEGER NOT NULL,      -- the number of the last commit point in this file
        ended_at TEXT                   -- ISO 8601, UTC; NULL while it runs, or if it was killed
    ) STRICT
    """,
    """
    CREATE TABLE keys (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE
    ) STRICT
    """,
    """
    CREATE TABLE stored_entries (
        run INTEGER NOT NULL REFERENCES runs(id),
        key INTEGER NOT NULL REFERENCES keys(id),
        time INTEGER NOT NULL,
        value ANY,
        PRIMARY KEY (run, key, time)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE stored_status (
        run INTEGER NOT NULL REFERENCES runs(id),
        key INTEGER NOT NULL REFERENCES keys(id),
        value ANY,
        PRIMARY KEY (run, key)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE stored_epochs (
        run INTEGER NOT NULL REFERENCES runs(id),
        epoch INTEGER NOT NULL,         -- from 1 on
        time INTEGER NOT NULL,
        PRIMARY KEY (run, epoch)
    ) STRICT, WITHOUT ROWID
    """,
    # Each durable commit changes this one row: a transaction that writes nothing syncs nothing.
    "CREATE TABLE barriers (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER) STRICT",
    "INSERT INTO barriers VALUES (1, 0)",
    f"""
    CREATE VIEW entries AS
    SELECT runs.run AS run, time, keys.key AS key, {_READABLE} AS value
    FROM stored_entries
    JOIN runs ON runs.id = stored_entries.run
    JOIN keys ON keys.id = stored_entries.key
    WHERE {_THERE}
    """,
    f"""
    CREATE VIEW status AS
    SELECT runs.run AS run, keys.key AS key, {_READABLE} AS value
    FROM stored_status
    JOIN runs ON runs.id = stored_status.run
    JOIN keys ON keys.id = stored_status.key
    WHERE {_THERE} AND keys.key <> '_epoch_ends'
    """,
    """
    CREATE VIEW epochs AS
    SELECT runs.run AS run, epoch, time
    FROM stored_epochs JOIN runs ON runs.id = stored_epochs.run
    """,
)

# A run and its ancestors, nearest first, each with the last time at which its rows count. A fork
# further down the line can only lower that limit.
LINEAGE: Final = """
    WITH RECURSIVE lineage(id, run, last_time, resumed_from, forked_at, distance) AS (
        SELECT id, run, 9223372036854775807, resumed_from, forked_at, 0 FROM runs WHERE run = ?
        UNION ALL
        SELECT runs.id, runs.run, MIN(lineage.last_time, lineage.forked_at),
               runs.resumed_from, runs.forked_at, distance + 1
        FROM lineage JOIN runs ON runs.run = lineage.resumed_from
        WHERE distance < 100000  -- a damaged file may go round in a circle
    )
    SELECT id, run, last_time FROM lineage ORDER BY distance
"""
