"""The SQLite file under the key store: durable transactions, readable by its owner only."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from qkdctl.roles.errors import KeyStoreError

LAYOUT = 1

SCHEMA = """
CREATE TABLE block (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    sifted_bits INTEGER NOT NULL,
    bits INTEGER NOT NULL DEFAULT 0,
    key BLOB,
    proof BLOB,
    reason TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL
);
CREATE INDEX block_state ON block (state);
CREATE TABLE secret (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE chunk (
    number INTEGER PRIMARY KEY,      -- order of arrival: the oldest is used up first
    direction TEXT NOT NULL,
    name TEXT NOT NULL,
    data BLOB NOT NULL,              -- bytes below `used` are overwritten with zeros
    size INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0,
    UNIQUE (direction, name)
);
CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""


class Database:
    """One SQLite connection behind a lock; every change is on disk before it is acted upon.

    Parameters
    ----------
    path : Path
        Created with mode 0600 where it does not exist (its folder with 0700).

    Raises
    ------
    KeyStoreError
        The file cannot be opened, is no database, or was written by another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            path.chmod(0o600)  # SQLite gives its -wal and -shm files the mode of this one
        except OSError as error:
            raise KeyStoreError(f"key store {path} cannot be opened: {error.strerror}") from None
        try:
            self._connection = sqlite3.connect(
                path, timeout=10.0, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            raise KeyStoreError(f"key store {path} cannot be opened: {error}") from None

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")  # a dropped key leaves no copy in free pages
        with self.transaction():
            (layout,) = connection.execute("PRAGMA user_version").fetchone()
            if layout == 0:
                for statement in SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={LAYOUT}")
            elif layout != LAYOUT:
                raise KeyStoreError(
                    f"key store {self.path} has layout {layout}; this version reads {LAYOUT}"
                )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run one atomic change; when the block is left without an error it is on the disk.

        The write lock is taken at the start, so that what is read inside stays true until the
        commit, whatever other threads or processes do.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise KeyStoreError(f"key store {self.path}: {error}") from None
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise KeyStoreError(f"key store {self.path}: {error}") from None
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to a single query."""
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise KeyStoreError(f"key store {self.path}: {error}") from None

    def close(self) -> None:
        """Close the file; may be called twice."""
        with self._lock:
            self._connection.close()
