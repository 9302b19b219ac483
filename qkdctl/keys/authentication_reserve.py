"""The secret bytes that pay for authentication: hash keys and one-time pads of the tags.

Both nodes hold the same bytes. They start with a pre-shared secret and are replenished from the
produced key (chunks named after the blocks they come from). Each direction of the channel has its
own bytes, so the two nodes never spend the same ones. A pad byte is handed out once: the position
behind it is on the disk, and the byte itself overwritten, before the caller gets it. A crash may
waste pads; it cannot repeat one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
from dataclasses import dataclass, field

from qkdctl.keys.database import Database
from qkdctl.roles.errors import KeyStoreError

ALICE_TO_BOB = "alice->bob"
BOB_TO_ALICE = "bob->alice"
DIRECTIONS = (ALICE_TO_BOB, BOB_TO_ALICE)
PRESHARED = "preshared"
HASH_KEY_BYTES = 16
MINIMUM_PRESHARED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Pad:
    """Bytes to encrypt one tag with, and the name under which the peer finds the same ones."""

    chunk: str
    offset: int
    data: bytes = field(repr=False)


class AuthenticationReserve:
    """Pads and hash keys of both directions, in the key store's database.

    Parameters
    ----------
    database : Database
    preshared : bytes or None
        The secret both nodes were given (1 KiB or more): 16 bytes of hash key per direction, then
        pads, one half per direction. ``None`` uses what the store already holds.

    Raises
    ------
    KeyStoreError
        The secret is too short, or another one than the store was made with.
    """

    def __init__(self, database: Database, preshared: bytes | None) -> None:
        self._database = database
        if preshared is not None:
            self._install(preshared)

    def _install(self, preshared: bytes) -> None:
        if len(preshared) < MINIMUM_PRESHARED_BYTES:
            raise KeyStoreError(
                f"the pre-shared secret has {len(preshared)} bytes, "
                f"{MINIMUM_PRESHARED_BYTES} or more are needed"
            )
        with self._database.transaction() as connection:
            known = dict(
                connection.execute("SELECT name, value FROM secret WHERE name LIKE 'check.%'")
            )
            if known:
                found = hmac.digest(known["check.salt"], preshared, hashlib.sha256)
                if not hmac.compare_digest(found, known["check.value"]):
                    raise KeyStoreError(
                        f"key store {self._database.path} was made with another pre-shared secret; "
                        "give both nodes the secret it was made with, or start with empty stores"
                    )
                return
            salt = os.urandom(16)
            rest = preshared[2 * HASH_KEY_BYTES :]
            half = len(rest) // 2
            secrets = {
                "check.salt": salt,
                "check.value": hmac.digest(salt, preshared, hashlib.sha256),
                f"hash.{ALICE_TO_BOB}": preshared[:HASH_KEY_BYTES],
                f"hash.{BOB_TO_ALICE}": preshared[HASH_KEY_BYTES : 2 * HASH_KEY_BYTES],
            }
            connection.executemany("INSERT INTO secret VALUES (?, ?)", secrets.items())
            add_chunk(connection, PRESHARED, rest[: 2 * half])

    def hash_key(self, direction: str) -> bytes:
        """Return the 16 bytes that choose the polynomial hash of this direction."""
        _check_direction(direction)
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT value FROM secret WHERE name = ?", (f"hash.{direction}",)
            ).fetchone()
        if row is None:
            raise KeyStoreError("the key store was made without a pre-shared secret")
        return bytes(row[0])

    def take_pad(self, direction: str, count: int) -> Pad:
        """Return `count` bytes nobody has used, from the oldest chunk that has as many left.

        Raises
        ------
        KeyStoreError
            No chunk has `count` bytes left: the link needs a new pre-shared secret.
        """
        _check_direction(direction)
        _check_count(count)
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT number, name, used FROM chunk WHERE direction = ? AND size - used >= ?"
                " ORDER BY number LIMIT 1",
                (direction, count),
            ).fetchone()
            if row is None:
                raise KeyStoreError(
                    f"the authentication reserve {direction} is used up; "
                    "give both nodes a new pre-shared secret"
                )
            number, name, used = row
            data = _spend(connection, number, used, used, count)
        return Pad(chunk=name, offset=used, data=data)

    def peer_pad(self, direction: str, chunk: str, offset: int, count: int) -> bytes:
        """Return the bytes the peer's tag names, once.

        An offset ahead of ours is accepted (the peer crashed, or a message was lost) and the
        bytes skipped are never used.

        Raises
        ------
        KeyStoreError
            The bytes were used before, lie outside the chunk, or the chunk is unknown.
        """
        _check_direction(direction)
        _check_count(count)
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT number, size, used FROM chunk WHERE direction = ? AND name = ?",
                (direction, chunk),
            ).fetchone()
            if row is None:
                raise KeyStoreError(f"no authentication chunk '{chunk}' in direction {direction}")
            number, size, used = row
            if offset < used:
                raise KeyStoreError(
                    f"pad {chunk}+{offset} {direction} was used before (next is {used})"
                )
            if offset + count > size:
                raise KeyStoreError(f"pad {chunk}+{offset} {direction} ends behind the chunk")
            return _spend(connection, number, used, offset, count)

    def reserve(self, direction: str) -> int:
        """Return the pad bytes left in this direction."""
        _check_direction(direction)
        with self._database.reading() as connection:
            (left,) = connection.execute(
                "SELECT coalesce(sum(size - used), 0) FROM chunk WHERE direction = ?", (direction,)
            ).fetchone()
        return int(left)


def add_chunk(connection: sqlite3.Connection, name: str, data: bytes) -> None:
    """Store an even number of bytes as pads: first half alice to bob, second half bob to alice."""
    half = len(data) // 2
    for direction, part in zip(DIRECTIONS, (data[:half], data[half:]), strict=True):
        connection.execute(
            "INSERT INTO chunk (direction, name, data, size) VALUES (?, ?, ?, ?)",
            (direction, name, part, half),
        )


def _spend(connection: sqlite3.Connection, number: int, used: int, start: int, count: int) -> bytes:
    """Read ``[start, start + count)`` and overwrite everything from `used` up to its end."""
    end = start + count
    with connection.blobopen("chunk", "data", number) as blob:
        data = blob[start:end]
        blob.seek(used)
        blob.write(bytes(end - used))
    connection.execute("UPDATE chunk SET used = ? WHERE number = ?", (end, number))
    return bytes(data)


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise KeyStoreError(f"direction is one of {', '.join(DIRECTIONS)}, not '{direction}'")


def _check_count(count: int) -> None:
    if count <= 0:
        raise KeyStoreError(f"a pad has 1 byte or more, not {count}")
