"""What the tests of the log and of faults share: plain SQL, a lock, waiting."""

import asyncio
import sqlite3
from contextlib import closing, contextmanager


def query(database, sql, *parameters):
    """Read the database over a connection of its own, as another program would."""
    with closing(sqlite3.connect(database, timeout=10)) as connection:
        return connection.execute(sql, parameters).fetchall()


def change(database, *statements):
    """Change the database over a connection of its own, as another program would."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


@contextmanager
def locked(database):
    """Hold the write lock of the database."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def until(condition):
    """Give the event loop turns until something is so."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)
