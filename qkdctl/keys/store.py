"""The key store: blocks on their way to keys, keys waiting for an application, pads for tags.

Nothing is a key until both nodes have verified it. A block moves ``sifted -> corrected ->
verified -> amplified -> confirmed -> available -> delivered``, or is ``dropped`` before it is
confirmed. The step to *available* happens in one transaction, after the peer said that it holds
the amplified block too; a node that crashed in between finds the block in `KeyStore.unresolved`
and asks the peer (`KeyStore.has_available`).
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from qkdctl.keys.authentication_reserve import AuthenticationReserve, Pad, add_chunk
from qkdctl.keys.database import Database
from qkdctl.roles.errors import KeyStoreError

# Which state follows which by `KeyStore.advance`; the later ones have methods of their own.
NEXT = {"sifted": "corrected", "corrected": "verified"}
UNFINISHED = ("sifted", "corrected", "verified")


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A block as others may see it: everything but the key."""

    block_id: str
    bits: int
    state: str
    created: float  # seconds since 1970
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A block that was amplified here, and of which it is not known whether the peer has it."""

    block_id: str
    state: str
    digest: str  # of the proof sheet, see `KeyStore.proof_digest`


class KeyStore:
    """Durable store of one node's blocks and keys.

    Every method may be called from any thread, and its effect is on the disk when it returns
    (SQLite, WAL, ``synchronous=FULL``).

    Parameters
    ----------
    path : Path
        The database file; created with mode 0600.
    preshared : bytes or None
        Pre-shared secret of the link, see `AuthenticationReserve`.

    Raises
    ------
    KeyStoreError
        From every method: wrong state, unknown block, used-up reserve, damaged file.
    """

    def __init__(self, path: Path, *, preshared: bytes | None) -> None:
        self._database = Database(Path(path))
        try:
            self._reserve = AuthenticationReserve(self._database, preshared)
        except BaseException:
            self._database.close()
            raise

    @property
    def path(self) -> Path:
        """The database file."""
        return self._database.path

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._database.close()

    def __enter__(self) -> KeyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the life of a block ----------------------------------------------------------------

    def begin(self, block_id: str, sifted_bits: int) -> None:
        """Enter a new block in state *sifted*."""
        with self._database.transaction() as connection:
            if connection.execute("SELECT 1 FROM block WHERE id = ?", (block_id,)).fetchone():
                raise KeyStoreError(f"block {block_id} exists already")
            connection.execute(
                "INSERT INTO block (id, state, sifted_bits, created) VALUES (?, 'sifted', ?, ?)",
                (block_id, sifted_bits, time.time()),
            )

    def advance(self, block_id: str, state: str) -> None:
        """Move a block to *corrected* or *verified*, the state that follows its present one."""
        with self._database.transaction() as connection:
            present = self._state(block_id)
            if NEXT.get(present) != state:
                raise KeyStoreError(f"block {block_id} is {present}; it cannot become {state}")
            connection.execute("UPDATE block SET state = ? WHERE id = ?", (state, block_id))

    def put_amplified(self, block_id: str, key: bytes, bits: int, proof: bytes) -> None:
        """Store the final key of a *verified* block; it cannot be delivered yet.

        Parameters
        ----------
        key : bytes
            ``ceil(bits / 8)`` bytes, most significant bit first.
        bits : int
            Length of the key, one or more.
        proof : bytes
            The proof sheet, a JSON object. Both nodes store the same bytes: its digest is how
            they recognise the block after a crash.
        """
        if bits <= 0 or len(key) != (bits + 7) // 8:
            raise KeyStoreError(f"block {block_id}: {len(key)} bytes cannot be a {bits}-bit key")
        _proof_object(block_id, proof)
        with self._database.transaction() as connection:
            present = self._state(block_id)
            if present != "verified":
                raise KeyStoreError(f"block {block_id} is {present}; only verified is amplified")
            connection.execute(
                "UPDATE block SET state = 'amplified', key = ?, bits = ?, proof = ? WHERE id = ?",
                (key, bits, proof, block_id),
            )

    def confirm(self, block_id: str, *, reserve_bytes: int) -> None:
        """Make an *amplified* block's key *available*, because the peer holds it too.

        In the same transaction the first `reserve_bytes` of it (rounded down to an even number,
        at most the key's whole bytes) become a chunk of the authentication reserve named
        `block_id`, half per direction. Both nodes must pass the same number. A key that goes to
        the reserve completely is *delivered* at once.
        """
        if reserve_bytes < 0:
            raise KeyStoreError(f"cannot reserve {reserve_bytes} bytes")
        with self._database.transaction() as connection:
            present = self._state(block_id)
            if present != "amplified":
                raise KeyStoreError(f"block {block_id} is {present}; only amplified is confirmed")
            key, bits = connection.execute(
                "SELECT key, bits FROM block WHERE id = ?", (block_id,)
            ).fetchone()
            taken = min(reserve_bytes, bits // 8) // 2 * 2
            if taken:
                add_chunk(connection, block_id, key[:taken])
            left = bits - 8 * taken
            if left:
                connection.execute(
                    "UPDATE block SET state = 'available', key = ?, bits = ? WHERE id = ?",
                    (key[taken:], left, block_id),
                )
            else:
                connection.execute(
                    "UPDATE block SET state = 'delivered', key = NULL, bits = 0,"
                    " reason = 'authentication reserve' WHERE id = ?",
                    (block_id,),
                )

    def drop(self, block_id: str, reason: str) -> None:
        """Give up a block that is not confirmed, and wipe its key.

        Dropping a dropped block changes nothing: several parts of a failing link may do so.
        """
        with self._database.transaction() as connection:
            present = self._state(block_id)
            if present == "dropped":
                return
            if present not in (*UNFINISHED, "amplified"):
                raise KeyStoreError(f"block {block_id} is {present}; it cannot be dropped")
            connection.execute(
                "UPDATE block SET state = 'dropped', key = NULL, reason = ? WHERE id = ?",
                (reason, block_id),
            )

    def drop_unfinished(self, reason: str) -> list[str]:
        """Drop the blocks a crash left before *amplified* (their bits were in memory only)."""
        marks = ", ".join("?" * len(UNFINISHED))
        with self._database.transaction() as connection:
            rows = connection.execute(
                f"UPDATE block SET state = 'dropped', reason = ? WHERE state IN ({marks})"
                " RETURNING id",
                (reason, *UNFINISHED),
            ).fetchall()
        return sorted(row[0] for row in rows)

    def deliver(self, block_id: str) -> bytes:
        """Return an *available* key, once; afterwards the store no longer has it."""
        with self._database.transaction() as connection:
            present = self._state(block_id)
            if present != "available":
                raise KeyStoreError(
                    f"block {block_id} is {present}; only an available key is delivered"
                )
            (key,) = connection.execute(
                "SELECT key FROM block WHERE id = ?", (block_id,)
            ).fetchone()
            connection.execute(
                "UPDATE block SET state = 'delivered', key = NULL WHERE id = ?", (block_id,)
            )
        return bytes(key)

    # -- questions --------------------------------------------------------------------------

    def keys(self) -> list[KeyInfo]:
        """Return every block, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT id, bits, state, created, reason FROM block ORDER BY created, rowid"
            ).fetchall()
        return [KeyInfo(*row) for row in rows]

    def unresolved(self) -> list[Unresolved]:
        """Return the blocks that are amplified but not confirmed, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT id, state, proof FROM block WHERE state = 'amplified'"
                " ORDER BY created, rowid"
            ).fetchall()
        return [Unresolved(block_id, state, _digest(proof)) for block_id, state, proof in rows]

    def has_available(self, block_id: str) -> bool:
        """Whether the block was confirmed here: its key is available, or already delivered."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT state FROM block WHERE id = ?", (block_id,)).fetchone()
        return row is not None and row[0] in ("available", "delivered")

    def available_bits(self) -> int:
        """Return the number of key bits ready for delivery."""
        with self._database.reading() as connection:
            (bits,) = connection.execute(
                "SELECT coalesce(sum(bits), 0) FROM block WHERE state = 'available'"
            ).fetchone()
        return int(bits)

    def proof(self, block_id: str) -> dict[str, Any]:
        """Return the proof sheet of a block that has been amplified."""
        return _proof_object(block_id, self._proof_bytes(block_id))

    def proof_digest(self, block_id: str) -> str:
        """Return SHA-256 (hex) of the proof sheet's bytes.

        Of the proof sheet and not of the key, because it crosses the channel and a digest of the
        key would tell an eavesdropper about it.
        """
        return _digest(self._proof_bytes(block_id))

    def _proof_bytes(self, block_id: str) -> bytes:
        with self._database.reading() as connection:
            row = connection.execute("SELECT proof FROM block WHERE id = ?", (block_id,)).fetchone()
        if row is None:
            raise KeyStoreError(f"no block {block_id}")
        if row[0] is None:
            raise KeyStoreError(f"block {block_id} has no proof sheet")
        return bytes(row[0])

    def _state(self, block_id: str) -> str:
        with self._database.reading() as connection:
            row = connection.execute("SELECT state FROM block WHERE id = ?", (block_id,)).fetchone()
        if row is None:
            raise KeyStoreError(f"no block {block_id}")
        return str(row[0])

    # -- authentication reserve ---------------------------------------------------------------

    def hash_key(self, direction: str) -> bytes:
        """See `AuthenticationReserve.hash_key`."""
        return self._reserve.hash_key(direction)

    def take_pad(self, direction: str, count: int) -> Pad:
        """See `AuthenticationReserve.take_pad`."""
        return self._reserve.take_pad(direction, count)

    def peer_pad(self, direction: str, chunk: str, offset: int, count: int) -> bytes:
        """See `AuthenticationReserve.peer_pad`."""
        return self._reserve.peer_pad(direction, chunk, offset, count)

    def reserve(self, direction: str) -> int:
        """See `AuthenticationReserve.reserve`."""
        return self._reserve.reserve(direction)

    # -- the node's own memory ----------------------------------------------------------------

    def state_set(self, name: str, value: Any) -> None:
        """Keep a small JSON value (a latch, the last settings) across restarts."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO state VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (name, msgspec.json.encode(value)),
            )

    def state_get(self, name: str, default: Any = None) -> Any:
        """Return a value kept by `state_set`, or `default`."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return default if row is None else msgspec.json.decode(row[0])


def _digest(proof: bytes) -> str:
    return hashlib.sha256(proof).hexdigest()


def _proof_object(block_id: str, proof: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(proof, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise KeyStoreError(f"block {block_id}: the proof sheet is no JSON object") from error
