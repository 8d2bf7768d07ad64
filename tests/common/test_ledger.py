"""What was spent stays written: through alteration, torn writes, kills, full disks, neighbours."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common import durable
from common.bundle import Bundle
from common.canonical import CanonicalError, decode, digest, encode
from common.errors import OperationError, TrustError
from common.keys import Identity, SigningKey
from common.ledger import Entry, Kind, Ledger, verify_chain
from common.ledger.entry import GENESIS, events
from common.ledger.file import LOCAL, read_federation
from common.privacy.events import Event

ROOT = Path(__file__).resolve().parents[2]
SECRET = bytes(range(32))
A, B = "a" * 64, "b" * 64
PLAN = "c" * 64


def approval() -> dict:
    return {
        "plan": PLAN,
        "terms": {},
        "code": "d" * 64,
        "model": "softmax",
        "features": ["pixels"],
        "policy": "a" * 64,
        "data": "b" * 64,
    }


def intent(number: int) -> dict:
    return {
        "plan": PLAN,
        "run": "e" * 32,
        "incarnation": 0,
        "round": number,
        "request": f"{number:064x}",
        "model": "f" * 64,
        "event": Event(0.5, 2.0, 3).json(),
        "clipping_norm": "1.0",
        "divisor": "10.0",
        "noise": "cryptographic",
        "spent": {"order": 8, "cost": "0.5"},
        "countersigned": {"entries": 0, "signature": "3" * 128},
    }


def disclosure(seq: int) -> dict:
    return {"intent": seq, "update": "9" * 64, "spent": {"order": 8, "cost": "0.5"}}


def add(ledger: Ledger, federation: str, kind: Kind, body: dict) -> Entry:
    with ledger.locked():
        return ledger.append(federation, kind, body)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "patients.jsonl"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    """Two federations, interleaved: approval, intent, disclosure and intent of A; intent of B."""
    ledger = Ledger.create(path, SECRET)
    add(ledger, A, Kind.APPROVAL, approval())
    add(ledger, A, Kind.INTENT, intent(1))
    add(ledger, B, Kind.INTENT, intent(1))
    add(ledger, A, Kind.DISCLOSURE, disclosure(1))
    add(ledger, A, Kind.INTENT, intent(2))
    return ledger


@pytest.fixture
def small(path: Path) -> Ledger:
    """Three lines of two federations: an approval, and an intent of each."""
    small = Ledger.create(path, SECRET)
    add(small, A, Kind.APPROVAL, approval())
    add(small, B, Kind.INTENT, intent(1))
    add(small, A, Kind.INTENT, intent(1))
    return small


def files(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


# -- ordinary life ---------------------------------------------------------------------------------


def test_what_was_appended_is_there_after_reopening(ledger: Ledger, path: Path) -> None:
    again = Ledger(path, SECRET)
    assert again.chain(A) == ledger.chain(A)
    assert [entry.kind for entry in again.chain(A)] == [
        "approval",
        "intent",
        "disclosure",
        "intent",
    ]
    assert again.spent() == [Event(0.5, 2.0, 3)] * 3
    assert again.chain("0" * 63 + "1") == ()
    verify_chain(again.chain(A), Identity.derive(SECRET, A).key.public)
    assert path.stat().st_mode & 0o777 == 0o600


def test_spending_counts_across_federations_and_whether_disclosed_or_not(ledger: Ledger) -> None:
    assert len(events(ledger.chain(A))) == 2
    assert len(events(ledger.chain(B))) == 1
    assert len(ledger.spent()) == 3


def test_an_existing_ledger_is_never_started_anew(ledger: Ledger, path: Path) -> None:
    before = files(path.parent)
    with pytest.raises(OperationError, match="already a ledger"):
        Ledger.create(path, SECRET)
    assert files(path.parent) == before


def test_a_missing_ledger_is_refused_and_not_recreated(ledger: Ledger, path: Path) -> None:
    path.unlink()
    for attempt in (lambda: Ledger(path, SECRET), lambda: add(ledger, A, Kind.INTENT, intent(3))):
        with pytest.raises(TrustError, match="cannot open the ledger") as caught:
            attempt()
        assert caught.value.code == "ledger-unusable"
    with pytest.raises(TrustError, match="cannot read the ledger"):
        read_federation(path, A)
    assert files(path.parent) == {}


def test_a_ledger_that_vanishes_under_the_lock_is_not_recreated(ledger, path: Path) -> None:
    with ledger.locked():
        path.unlink()
        with pytest.raises(TrustError) as caught:
            ledger.append(A, Kind.INTENT, intent(3))
    assert caught.value.code == "ledger-unusable"
    assert files(path.parent) == {}


def test_another_clients_ledger_is_refused(ledger: Ledger, path: Path) -> None:
    before = files(path.parent)
    with pytest.raises(TrustError, match="signature"):
        Ledger(path, bytes(32))
    assert files(path.parent) == before


def test_a_body_with_other_fields_is_never_written(ledger: Ledger, path: Path) -> None:
    before = files(path.parent)
    chain = ledger.chain(A)
    bad = [
        (Kind.INTENT, {**intent(3), "loss": "0.5"}),
        (Kind.INTENT, {k: v for k, v in intent(3).items() if k != "event"}),
        (Kind.INTENT, {**intent(3), "event": {}}),
        (Kind.INTENT, {**intent(3), "round": True}),
        (Kind.INTENT, {**intent(3), "round": -1}),
        (Kind.DISCLOSURE, {"intent": "1", "update": "9" * 64}),
        (Kind.DISCLOSURE, intent(3)),
    ]
    for kind, body in bad:
        with pytest.raises(CanonicalError):
            add(ledger, A, kind, body)
    assert files(path.parent) == before
    assert ledger.chain(A) == chain


# -- alteration ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_altered_byte_makes_the_ledger_unusable(small: Ledger, path: Path) -> None:
    good = path.read_bytes()
    undetected = []
    for position in range(len(good)):
        # A neighbour of the byte; now and then also what would split or end a line otherwise.
        often = position % 16 == 0 or good[position] == 0x0A
        for value in {good[position] ^ 1, *((0x0D, 0x0A, 0x00, 0x20) if often else ())}:
            if value == good[position]:
                continue
            path.write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
            altered = path.read_bytes()
            try:
                Ledger(path, SECRET)
                undetected.append((position, value))
            except TrustError as error:
                assert error.code == "ledger-unusable"
            if path.read_bytes() != altered or len(list(path.parent.iterdir())) != 1:
                undetected.append((position, value))
                (path.parent / "patients.torn").unlink(missing_ok=True)
    assert undetected == []


def test_an_open_ledger_notices_an_alteration_of_the_same_length(ledger, path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"round":2', b'"round":1'))
    os.utime(path, ns=(1, 1))
    with pytest.raises(TrustError, match="line 5"):
        add(ledger, A, Kind.INTENT, intent(3))
    path.write_bytes(good)
    add(ledger, A, Kind.INTENT, intent(3))
    assert len(Ledger(path, SECRET).spent()) == 4


def test_a_failed_reading_is_never_taken_for_an_empty_ledger(ledger, path: Path) -> None:
    # Damaged while open, then put back to the very bytes and time that were read before.
    good, times = path.read_bytes(), path.stat()
    path.write_bytes(b"x" + good)
    with pytest.raises(TrustError), ledger.locked():
        pass
    path.write_bytes(good)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with ledger.locked():
        assert len(ledger.spent()) == 3


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (lambda x: x[:2] + x[3:], "line 3"),
        (lambda x: x[1:], "line 1"),
        (lambda x: [x[0], x[2], x[1], *x[3:]], "line 2"),
        (lambda x: [*x, x[-1]], "line 6"),
        (lambda x: [x[0], *x], "line 2"),
        (lambda x: [*x[:2], b"\n", *x[2:]], "line 3"),
        (lambda x: [*x[:2], b"{}\n", *x[2:]], "line 3"),
        (lambda x: [*x[:3], x[3].rstrip() + b" \n", x[4]], "line 4"),
        (lambda x: [*x, b"\n"], "line 6"),
    ],
    ids=[
        "middle",
        "first",
        "swap",
        "repeat last",
        "repeat first",
        "blank",
        "empty",
        "space",
        "end",
    ],
)
def test_lines_dropped_moved_or_added_are_named(ledger, path: Path, attack, named: str) -> None:
    path.write_bytes(b"".join(attack(lines(path))))
    before = files(path.parent)
    with pytest.raises(TrustError, match=named) as caught:
        Ledger(path, SECRET)
    assert caught.value.code == "ledger-unusable"
    assert files(path.parent) == before


def relinked(entries: list[Entry]) -> bytes:
    """A ledger file whose links are right, whatever the entries are."""
    link, result = GENESIS, b""
    for entry in entries:
        link = digest(f"privet/ledger-link/v1\n{link}\n{entry.digest}".encode())
        result += encode({"entry": entry.json(), "link": link}) + b"\n"
    return result


def test_new_links_do_not_hide_what_was_cut_out_or_forged(ledger: Ledger, path: Path) -> None:
    chain = list(ledger.chain(A))
    stranger = Identity("0" * 32, SigningKey.from_seed(b"x" * 32))
    last = Entry.sign(stranger, A, chain[-1], Kind.INTENT, intent(3), "2026-01-01T00:00:00Z")
    forgeries = [
        [chain[0], *chain[2:]],
        [chain[0], replace(chain[1], body=intent(9)), *chain[2:]],
        [*chain, last],
        [*chain, replace(last, client=chain[0].client)],
        [chain[0], replace(chain[1], time="1999-01-01T00:00:00Z"), *chain[2:]],
        [chain[0], chain[1], replace(chain[3], seq=2, prev=chain[1].digest)],
    ]
    for forged in forgeries:
        path.write_bytes(relinked(forged))
        with pytest.raises(TrustError, match=r"federation aaaaaaaaaaaa…: entry \d"):
            Ledger(path, SECRET)
    path.write_bytes(relinked(chain))
    assert Ledger(path, SECRET).chain(A) == tuple(chain)


def test_another_spelling_of_an_entry_is_refused(ledger: Ledger, path: Path) -> None:
    good = path.read_bytes()
    for old, new in [
        (b'"schema_version":2', b'"schema_version":true'),
        (b'"seq":1,', b'"seq":true,'),
        (b'"kind":"intent"', b'"kind":"INTENT"'),
        (b'"client":"', b'"client":"\\u0030'),
    ]:
        assert old in good
        path.write_bytes(good.replace(old, new, 1))
        with pytest.raises(TrustError, match="line"):
            Ledger(path, SECRET)


# -- the chain alone -------------------------------------------------------------------------------


def test_a_disclosure_needs_an_intent_that_is_still_open() -> None:
    who = Identity.derive(SECRET, A)
    first = Entry.sign(who, A, None, Kind.INTENT, intent(1), "t")
    second = Entry.sign(who, A, first, Kind.DISCLOSURE, disclosure(0), "t")
    verify_chain([first, second], who.key.public)
    again = Entry.sign(who, A, second, Kind.DISCLOSURE, disclosure(0), "t")
    with pytest.raises(TrustError, match="entry 2: discloses without an open intent"):
        verify_chain([first, second, again], who.key.public)
    for missing in (1, 7):
        orphan = Entry.sign(who, A, first, Kind.DISCLOSURE, disclosure(missing), "t")
        with pytest.raises(TrustError, match="entry 1: discloses without"):
            verify_chain([first, orphan], who.key.public)


@pytest.mark.parametrize(
    "body",
    [{}, {"version": 0, "digest": ""}, {"version": True, "digest": ""}, {"version": "1"}]
    + [{"version": 1, "digest": "a", "more": 1}],
    ids=str,
)
def test_a_policy_that_was_seen_has_a_version_and_a_digest(body: dict) -> None:
    who = Identity.derive(SECRET, A)
    noted = {"version": 1, "digest": "a" * 64}
    good = Entry.sign(who, A, None, Kind.POLICY, noted, "2030-01-01T00:00:00Z")
    assert Entry.from_json(good.json()) == good
    with pytest.raises(TrustError):
        Entry.from_json({**good.json(), "body": body})


def test_an_entry_of_another_federation_does_not_belong() -> None:
    who = Identity.derive(SECRET, A)
    first = Entry.sign(who, A, None, Kind.INTENT, intent(1), "t")
    other = Entry.sign(who, B, first, Kind.INTENT, intent(2), "t")
    with pytest.raises(TrustError, match="entry 1: belongs to another"):
        verify_chain([first, other], who.key.public)


def test_an_entry_comes_back_from_json_and_nothing_else_does(ledger: Ledger) -> None:
    entry = ledger.chain(A)[1]
    good = entry.json()
    assert Entry.from_json(decode(encode(good))) == entry
    for changes in (
        {"schema_version": 1},
        {"seq": -1},
        {"seq": "1"},
        {"prev": "A" * 64},
        {"federation": "x"},
        {"client": None},
        {"client": "c" * 129},
        {"time": 5},
        {"time": "yesterday"},
        {"time": "2030-01-01T00:00:00+01:00"},
        {"kind": "gift"},
        {"kind": ["intent"]},
        {"body": None},
        {"body": {}},
        {"signature": "x"},
        {"signature": None},
        {"extra": 1},
    ):
        with pytest.raises(TrustError):
            Entry.from_json({**good, **changes})
    for value in (None, [], "x", {}):
        with pytest.raises(TrustError):
            Entry.from_json(value)


# -- torn writes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_last_line_torn_anywhere_is_set_aside_and_recorded(small: Ledger, path: Path) -> None:
    good = path.read_bytes()
    last = lines(path)[-1]
    kept = good[: -len(last)]
    for cut in range(1, len(last) - 1):
        path.write_bytes(kept + last[:cut])
        again = Ledger(path, SECRET)
        assert len(again.spent()) == 1
        assert [e.body for e in again.chain(LOCAL)] == [{"torn": digest(last[:cut])}]
        assert path.with_suffix(".torn").read_bytes() == last[:cut]
        assert path.read_bytes().startswith(kept)
        if cut % 64 == 1:  # and life goes on
            add(again, A, Kind.INTENT, intent(3))
            assert len(Ledger(path, SECRET).spent()) == 2
        path.with_suffix(".torn").unlink()


def test_a_line_that_lacks_only_its_end_stays_spent(ledger: Ledger, path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    again = Ledger(path, SECRET)
    assert len(again.spent()) == 3
    assert path.read_bytes() == good
    assert again.chain(A) == ledger.chain(A)


def test_a_tail_of_zeros_is_set_aside(ledger: Ledger, path: Path) -> None:
    # What some file systems leave after a power cut: the new length, without its content.
    good = path.read_bytes()
    path.write_bytes(good + bytes(500))
    assert len(Ledger(path, SECRET).spent()) == 3
    assert path.read_bytes().startswith(good)


def test_a_recovery_that_was_itself_killed_is_recorded_at_the_next_start(ledger, path) -> None:
    good = path.read_bytes()
    path.with_suffix(".torn").write_bytes(b'{"entry":')
    again = Ledger(path, SECRET)
    assert [e.body["torn"] for e in again.chain(LOCAL)] == [digest(b'{"entry":')]
    size = path.stat().st_size
    assert size > len(good)
    Ledger(path, SECRET)
    assert path.stat().st_size == size


# -- neighbours ------------------------------------------------------------------------------------


def worker(code: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """A process with this module's helpers, without torch."""
    source = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("helpers", {str(Path(__file__))!r})
t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
{code}
assert "torch" not in sys.modules
"""
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_two_processes_never_lose_or_repeat_an_entry(path: Path) -> None:
    Ledger.create(path, SECRET)
    code = """
ledger = t.Ledger(t.Path(sys.argv[1]), t.SECRET)
for i in range(25):
    t.add(ledger, sys.argv[2], t.Kind.INTENT, t.intent(i))
"""
    both = [worker(code, str(path), federation) for federation in (A, A)]
    for process in both:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr.decode()
    again = Ledger(path, SECRET)
    assert [entry.seq for entry in again.chain(A)] == list(range(50))
    rounds = sorted(entry.body["round"] for entry in again.chain(A))
    assert rounds == sorted([*range(25), *range(25)])


def test_an_open_ledger_sees_what_another_process_appended(ledger: Ledger, path: Path) -> None:
    other = Ledger(path, SECRET)
    add(other, A, Kind.INTENT, intent(3))
    with ledger.locked():
        assert len(ledger.spent()) == 4
        ledger.append(A, Kind.INTENT, intent(4))
    with other.locked():
        assert len(other.spent()) == 5


def test_nobody_can_append_while_another_holds_the_lock(ledger: Ledger, path: Path) -> None:
    code = """
ledger = t.Ledger(t.Path(sys.argv[1]), t.SECRET)
t.add(ledger, t.A, t.Kind.INTENT, t.intent(9))
"""
    with ledger.locked():
        size = path.stat().st_size
        process = worker(code, str(path))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        assert path.stat().st_size == size
        ledger.append(A, Kind.INTENT, intent(3))
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert [e.body.get("round") for e in Ledger(path, SECRET).chain(A)][-2:] == [3, 9]


# -- kills and full disks --------------------------------------------------------------------------

SPENDER = """
path = t.Path(sys.argv[1])
ledger = t.Ledger(path, t.SECRET) if path.exists() else t.Ledger.create(path, t.SECRET)
for i in range(1, 4):
    entry = t.add(ledger, t.A, t.Kind.INTENT, t.intent(i))
    print("spent", entry.digest, flush=True)
    t.add(ledger, t.A, t.Kind.DISCLOSURE, t.disclosure(entry.seq))
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_write_nothing_that_was_spent_is_forgotten(tmp_path: Path) -> None:
    # Each process is killed at its n-th durable step; four run at a time.
    step, done = 1, 0
    while not done:
        running = []
        for n in range(step, step + 4):
            path = tmp_path / f"{n}" / "data.jsonl"
            path.parent.mkdir()
            running.append((path, worker(SPENDER, str(path), PRIVET_TEST_KILL_AT_WRITE=str(n))))
        for path, process in running:
            out, err = process.communicate(timeout=60)
            said = out.decode().split()
            done += "done" in said
            if "done" not in said:
                assert process.returncode == -signal.SIGKILL, err.decode()
            if not path.exists():
                assert said == []
                continue
            durable.sweep(path.parent)
            again = Ledger(path, SECRET)
            intents = {e.digest for e in again.chain(A) if e.kind is Kind.INTENT}
            promised = {word for word in said if len(word) == 64}
            assert promised <= intents
            assert len(again.spent()) == len(intents) >= len(promised)
            add(again, A, Kind.INTENT, intent(9))
            assert len(Ledger(path, SECRET).spent()) == len(intents) + 1
            assert list(path.parent.glob(".*")) == []
        step += 4
    assert step > 3 * 6  # three steps for the file, three for each of six entries, and then done


def test_killed_during_a_recovery_the_next_start_recovers(ledger: Ledger, path: Path) -> None:
    good = path.read_bytes()
    torn = good + b'{"entry":{"body"'
    for n in range(1, 12):
        path.write_bytes(torn)
        path.with_suffix(".torn").unlink(missing_ok=True)
        process = worker(
            "t.Ledger(t.Path(sys.argv[1]), t.SECRET)", str(path), PRIVET_TEST_KILL_AT_WRITE=str(n)
        )
        process.communicate(timeout=60)
        durable.sweep(path.parent)
        again = Ledger(path, SECRET)
        assert len(again.spent()) == 3
        assert len(again.chain(LOCAL)) == 1
        if process.returncode == 0:
            break
    assert 4 < n < 11


class FullDisk:
    """A file that takes ``room`` bytes and then refuses, as a full disk does."""

    def __init__(self, file, room: int, code: int) -> None:
        self._file, self._room, self._code = file, room, code

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *args):
        return self._file.__exit__(*args)

    def write(self, data: bytes) -> int:
        if self._room == 0:
            raise OSError(self._code, os.strerror(self._code))
        return self._file.write(data[: self._room])

    def __getattr__(self, name: str):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 1, 200])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_the_ledger_as_it_was(ledger, path, monkeypatch, room, code) -> None:
    before, chain = files(path.parent), ledger.chain(A)
    with monkeypatch.context() as patch:
        opened = lambda *a, **k: FullDisk(open(*a, **k), room, code)  # noqa: E731, SIM115
        patch.setattr(durable, "open", opened, raising=False)
        with pytest.raises(OperationError, match="cannot write") as caught:
            add(ledger, A, Kind.INTENT, intent(3))
    full = room > 0 or code in (errno.ENOSPC, errno.EDQUOT)
    assert caught.value.code == ("disk-full" if full else "cannot-write")
    assert caught.value.hint
    assert files(path.parent) == before
    assert ledger.chain(A) == chain
    add(ledger, A, Kind.INTENT, intent(3))
    assert len(Ledger(path, SECRET).spent()) == 4


def test_an_fsync_that_fails_leaves_the_ledger_as_it_was(ledger, path, monkeypatch) -> None:
    before = files(path.parent)

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", refuse)
        with pytest.raises(OperationError):
            add(ledger, A, Kind.INTENT, intent(3))
    assert files(path.parent) == before
    add(ledger, A, Kind.INTENT, intent(3))
    assert len(Ledger(path, SECRET).spent()) == 4


def test_a_full_disk_leaves_a_replaced_file_as_it_was(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "state.json"
    durable.replace(file, b"old", mode=0o600)

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", refuse)
    with pytest.raises(OperationError, match="No space left"):
        durable.replace(file, b"new")
    assert files(tmp_path) == {"state.json": b"old"}
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_directory_of_a_missing_parent_is_an_operation_error(tmp_path: Path) -> None:
    with pytest.raises(OperationError):
        durable.replace(tmp_path / "absent" / "file", b"")
    with pytest.raises(OperationError):
        Ledger.create(tmp_path / "absent" / "ledger.jsonl", SECRET)
    assert files(tmp_path) == {}


# -- what others see -------------------------------------------------------------------------------


def test_what_is_published_of_one_federation_does_not_show_any_other(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("common.ledger.file.now", lambda: "2026-01-01T00:00:00Z")
    written = {}
    for busy in (False, True):
        path = tmp_path / f"{busy}.jsonl"
        ledger = Ledger.create(path, SECRET)
        for i in range(1, 4):
            if busy:
                for federation in (B, "1" * 64):
                    add(ledger, federation, Kind.INTENT, intent(i))
            entry = add(ledger, A, Kind.INTENT, intent(i))
            add(ledger, A, Kind.DISCLOSURE, disclosure(entry.seq))
        who = Identity.derive(SECRET, A)
        bundle = Bundle(
            plan=b"p",
            statement=b"s",
            signers={},
            clients={who.pseudonym: who.key.public},
            ledgers={who.pseudonym: read_federation(path, A)},
            heads={},
        )
        bundle.write(tmp_path / f"bundle-{busy}")
        written[busy] = {
            p.relative_to(tmp_path / f"bundle-{busy}").as_posix(): p.read_bytes()
            for p in (tmp_path / f"bundle-{busy}").rglob("*")
            if p.is_file()
        }
    assert written[False] == written[True]
    assert len(written[True]) == 4


def test_what_is_published_of_a_damaged_file_is_refused(ledger: Ledger, path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(TrustError, match="line 6"):
        read_federation(path, A)
