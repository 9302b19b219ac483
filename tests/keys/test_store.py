"""The key store keeps its promises: order of states, one delivery, one use of each pad."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdctl.keys.authentication_reserve import ALICE_TO_BOB, BOB_TO_ALICE, DIRECTIONS
from qkdctl.keys.store import KeyStore
from qkdctl.roles.errors import KeyStoreError

PRESHARED = bytes(i * 7 % 256 for i in range(2048))
KEY = bytes(range(1, 129))


def amplified(store: KeyStore, block_id: str, key: bytes = KEY) -> None:
    store.begin(block_id, 5000)
    store.advance(block_id, "corrected")
    store.advance(block_id, "verified")
    store.put_amplified(block_id, key, 8 * len(key), b'{"bound":"lim2014"}')


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node" / "keys.sqlite"


def test_a_block_becomes_a_key_and_is_delivered_once(path: Path) -> None:
    with KeyStore(path, preshared=PRESHARED) as store:
        amplified(store, "b1")
        assert not store.has_available("b1")
        assert store.available_bits() == 0
        with pytest.raises(KeyStoreError, match="only an available key"):
            store.deliver("b1")
        store.confirm("b1", reserve_bytes=32)
        assert store.available_bits() == 8 * 96
        assert store.deliver("b1") == KEY[32:]
        with pytest.raises(KeyStoreError, match="delivered"):
            store.deliver("b1")
        assert store.has_available("b1"), "a peer that asks late must hear that it was confirmed"
        assert store.proof("b1") == {"bound": "lim2014"}
    with KeyStore(path, preshared=PRESHARED) as store:
        (info,) = store.keys()
        assert (info.block_id, info.state) == ("b1", "delivered")
        with pytest.raises(KeyStoreError):
            store.deliver("b1")


def test_a_delivered_or_dropped_key_is_gone_from_the_files(path: Path) -> None:
    with KeyStore(path, preshared=PRESHARED) as store:
        amplified(store, "b1")
        amplified(store, "b2", KEY[::-1])
        store.confirm("b1", reserve_bytes=0)
        store.deliver("b1")
        store.drop("b2", "peer lost it")
        dropped = store.keys()[1]
        assert (dropped.state, dropped.reason) == ("dropped", "peer lost it")
    for file in path.parent.iterdir():
        content = file.read_bytes()
        assert KEY[40:80] not in content
        assert KEY[::-1][40:80] not in content


def test_states_cannot_be_skipped(path: Path) -> None:
    with KeyStore(path, preshared=None) as store:
        store.begin("b", 10)
        for wrong in (
            lambda: store.begin("b", 10),
            lambda: store.advance("b", "verified"),
            lambda: store.advance("b", "available"),
            lambda: store.put_amplified("b", KEY, 1024, b"{}"),
            lambda: store.confirm("b", reserve_bytes=0),
            lambda: store.advance("unknown", "corrected"),
        ):
            with pytest.raises(KeyStoreError):
                wrong()
        store.advance("b", "corrected")
        store.advance("b", "verified")
        with pytest.raises(KeyStoreError, match="1000-bit"):
            store.put_amplified("b", KEY, 1000, b"{}")
        with pytest.raises(KeyStoreError, match="JSON"):
            store.put_amplified("b", KEY, 1024, b"no json")
        store.put_amplified("b", KEY, 1024, b"{}")
        store.confirm("b", reserve_bytes=0)
        with pytest.raises(KeyStoreError, match="cannot be dropped"):
            store.drop("b", "too late")


def test_a_restart_finds_what_needs_the_peer_and_drops_what_was_in_memory(path: Path) -> None:
    with KeyStore(path, preshared=PRESHARED) as store:
        store.begin("half", 10)
        amplified(store, "open")
        digest = store.proof_digest("open")
    with KeyStore(path, preshared=PRESHARED) as store:
        assert [(u.block_id, u.digest) for u in store.unresolved()] == [("open", digest)]
        assert store.drop_unfinished("restart") == ["half"]
        store.confirm("open", reserve_bytes=0)
        assert store.unresolved() == []


def test_both_nodes_draw_the_same_pads_and_never_twice(tmp_path: Path) -> None:
    with (
        KeyStore(tmp_path / "a", preshared=PRESHARED) as alice,
        KeyStore(tmp_path / "b", preshared=PRESHARED) as bob,
    ):
        for direction in DIRECTIONS:
            assert alice.hash_key(direction) == bob.hash_key(direction)
        assert alice.hash_key(ALICE_TO_BOB) != alice.hash_key(BOB_TO_ALICE)
        first, second = alice.take_pad(ALICE_TO_BOB, 16), alice.take_pad(ALICE_TO_BOB, 16)
        assert second.offset == 16
        # the first message was lost on the way
        got = bob.peer_pad(ALICE_TO_BOB, second.chunk, second.offset, 16)
        assert got == second.data != first.data
        for offset in (second.offset, second.offset + 8, first.offset, -16):
            with pytest.raises(KeyStoreError, match="used before"):
                bob.peer_pad(ALICE_TO_BOB, second.chunk, offset, 16)
        with pytest.raises(KeyStoreError, match="behind the chunk"):
            bob.peer_pad(ALICE_TO_BOB, "preshared", 10**6, 16)
        with pytest.raises(KeyStoreError, match="no authentication chunk"):
            bob.peer_pad(ALICE_TO_BOB, "b1", 0, 16)
        assert bob.reserve(ALICE_TO_BOB) == alice.reserve(ALICE_TO_BOB) == 1008 - 32
        assert bob.reserve(BOB_TO_ALICE) == 1008


def test_the_reserve_is_replenished_from_a_confirmed_block(tmp_path: Path) -> None:
    with KeyStore(tmp_path / "a", preshared=PRESHARED[:1024]) as store:
        while store.reserve(BOB_TO_ALICE) >= 16:
            store.take_pad(BOB_TO_ALICE, 16)
        with pytest.raises(KeyStoreError, match="used up"):
            store.take_pad(BOB_TO_ALICE, 16)
        amplified(store, "b1")
        store.confirm("b1", reserve_bytes=64)
        pad = store.take_pad(BOB_TO_ALICE, 16)
        assert (pad.chunk, pad.offset, pad.data) == ("b1", 0, KEY[32:48])
        assert store.deliver("b1") == KEY[64:]
        amplified(store, "b2")
        store.confirm("b2", reserve_bytes=10_000)
        assert store.available_bits() == 0
        assert store.has_available("b2")


def test_another_preshared_secret_is_refused_and_shown_nowhere(path: Path) -> None:
    KeyStore(path, preshared=PRESHARED).close()
    with pytest.raises(KeyStoreError, match="another pre-shared secret") as caught:
        KeyStore(path, preshared=PRESHARED[::-1])
    assert PRESHARED[:8].hex() not in str(caught.value)
    with pytest.raises(KeyStoreError, match="1024 or more"):
        KeyStore(path, preshared=b"short")
    with KeyStore(path, preshared=None) as store:
        assert "data" not in repr(store.take_pad(ALICE_TO_BOB, 16))


def test_only_the_owner_can_read_the_files(path: Path) -> None:
    with KeyStore(path, preshared=PRESHARED) as store:
        store.state_set("latch", {"interlock": True})
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert store.state_get("latch") == {"interlock": True}
        assert store.state_get("other", 3) == 3


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"this is a text file, and a long one" * 100)
    with pytest.raises(KeyStoreError, match="not a database"):
        KeyStore(path, preshared=None)


def test_threads_share_the_pads_without_overlap(path: Path) -> None:
    with KeyStore(path, preshared=PRESHARED) as store:
        taken: list[int] = []

        def work() -> None:
            taken.extend(store.take_pad(ALICE_TO_BOB, 16).offset for _ in range(12))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == [16 * i for i in range(48)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DIRECTIONS), st.integers(1, 40)), max_size=15))
def test_no_pad_byte_is_handed_out_twice(
    tmp_path_factory: pytest.TempPathFactory, draws: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("pads")
    seen: set[tuple[str, str, int]] = set()
    for direction, count in draws:
        with KeyStore(folder / "keys", preshared=PRESHARED) as store:
            pad = store.take_pad(direction, count)
        cells = {(direction, pad.chunk, pad.offset + i) for i in range(count)}
        assert len(pad.data) == count
        assert not cells & seen
        seen |= cells
