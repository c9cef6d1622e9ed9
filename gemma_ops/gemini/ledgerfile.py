"""The file of the ledger: its tables, how it is opened, and what a failure of it means.

SQLite with WAL, for many processes at once, and synchronous FULL. With less, every commit still outlives a killed
process, but not a power cut, after which money would be spent that the ledger forgot. The price is one flush per
commit, milliseconds next to a reply that takes seconds.

`committed` holds the sum of what counts per run. Triggers keep it, so that no writer can forget to and a cap is checked
without adding up the whole history; rows are never deleted.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma_ops.errors import BusyError, MachineError

VERSION = 1
_LOOKS = 10
_WAIT = 60.0  # seconds another process may hold the store
_SCHEMA = """
CREATE TABLE IF NOT EXISTS reservations (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  key TEXT NOT NULL, run TEXT NOT NULL, use TEXT NOT NULL, model TEXT NOT NULL, tier TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'settled', 'released')),
  worst INTEGER NOT NULL CHECK (worst >= 0),
  cost INTEGER CHECK (cost >= 0),
  amount INTEGER NOT NULL GENERATED ALWAYS AS
    (CASE state WHEN 'held' THEN worst WHEN 'settled' THEN cost ELSE 0 END) STORED,
  holder TEXT NOT NULL, reserved_at REAL NOT NULL, closed_at REAL,
  usage TEXT, model_version TEXT NOT NULL DEFAULT '', response_id TEXT NOT NULL DEFAULT '', why TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS reservations_by_state ON reservations (state, run);
CREATE INDEX IF NOT EXISTS reservations_by_key ON reservations (key);
CREATE TABLE IF NOT EXISTS committed (run TEXT PRIMARY KEY, amount INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS reserved AFTER INSERT ON reservations BEGIN
  INSERT INTO committed VALUES (NEW.run, NEW.amount) ON CONFLICT (run) DO UPDATE SET amount = amount + NEW.amount;
END;
CREATE TRIGGER IF NOT EXISTS closed AFTER UPDATE ON reservations BEGIN
  UPDATE committed SET amount = amount + NEW.amount - OLD.amount WHERE run = NEW.run;
END;
CREATE TRIGGER IF NOT EXISTS kept BEFORE DELETE ON reservations BEGIN SELECT RAISE(ABORT, 'a ledger keeps its rows'); END;
"""  # noqa: E501


def open_file(path: Path) -> sqlite3.Connection:
    """Open or make the file. Transactions are the caller's (`isolation_level` None); threads must take turns.

    Raises MachineError where there can't be such a file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{path.parent} can't hold the ledger: {error}", "set machine.ledger") from error
    check_whole_file(path)
    with explained_sqlite(path):
        connection = sqlite3.connect(path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
        mode = _enter_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        # Every commit goes into the file itself: a copy of it without its `-wal` would otherwise have spent nothing.
        connection.execute("PRAGMA wal_autocheckpoint = 1")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
    if mode != "wal":
        raise MachineError(f"{path} is on a file system without shared memory", "set machine.ledger to a local disk")
    if found > VERSION:
        raise MachineError(f"{path} was written by a newer gemma-ops", "update gemma-ops, or set machine.ledger")
    return connection


def check_whole_file(path: Path) -> None:
    """Raise MachineError for a file whose rows are in a `-wal` that was left behind when it was copied.

    Such a file has SQLite's header, says there that it is written ahead (byte 18 is 2), and holds no table. Another
    process that makes the file at this moment leaves the same for an instant, so a second look decides.
    """
    for _ in range(_LOOKS):
        try:
            with path.open("rb") as file:
                head = file.read(100)
        except OSError:
            return
        written_ahead = head[:16] == b"SQLite format 3\0" and head[18] == 2
        empty = head[60:64] == b"\0\0\0\0"  # user_version
        if not written_ahead or not empty or path.with_name(path.name + "-wal").exists():
            return
        time.sleep(0.05)
    raise MachineError(
        f"{path} was copied without {path.name}-wal, which holds what was spent",
        "copy both files, while no run writes them; or set machine.ledger to a new file to start from zero",
    )


@contextmanager
def explained_sqlite(path: Path) -> Iterator[None]:
    """Turn failures of the file itself into errors a person can act on; wrong SQL stays a defect."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise BusyError(f"{path} is held by another process", "try again when other runs are done") from error
        if kind in {
            sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH,
        }:  # fmt: skip
            raise MachineError(
                f"{path} can't hold the ledger: {error}",
                "free some space and check its permissions, or set machine.ledger to another file",
            ) from error
        raise


def _enter_wal(connection: sqlite3.Connection) -> str:
    """Switch the file to WAL, and retry when another process makes it at the same moment: SQLite then reports at once
    that it is busy, without the wait it grants everywhere else."""
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        for _ in range(200):
            try:
                return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                time.sleep(0.01)
    return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
