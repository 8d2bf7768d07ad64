"""A small federation for tests: a coordinator, a plan, and clients with a table of their own.

Everything is a value or a file under the test's own folder; keys come from fixed seeds. The model
is a softmax over two columns: six parameters, so a round takes a millisecond.
"""

from __future__ import annotations

import hashlib
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from client.approval import approve
from client.custody import Custody
from client.home import Home
from client.rounds import Client
from common import durable
from common.data.binding import Binding
from common.data.schema import Column, Schema
from common.keys import Identity, KeyDirectory, SigningKey
from common.ledger import Entry, Head, Ledger, merkle
from common.plan import Cohort, Optimizer, Plan, Privacy, Release
from common.policy import Policy
from common.privacy.filter import Budget
from common.statement import PLAN_TYPE, Envelope
from common.wire import (
    Arrays,
    Closed,
    Closing,
    Receipt,
    RoundRequest,
    Update,
    digest_arrays,
    digest_update,
)
from server.home import Member

COORDINATOR = SigningKey.from_seed(b"\x01" * 32)
STRANGER = SigningKey.from_seed(b"\x02" * 32)
OWNER = SigningKey.from_seed(b"\x03" * 32)
FEDERATION = COORDINATOR.public.fingerprint
RUN = "0123456789abcdef" * 2

SCHEMA = Schema(
    kind="table",
    shape=(2,),
    classes=("no", "yes"),
    columns=(Column("height", -1.0, 1.0), Column("weight", -1.0, 1.0)),
    target="answer",
)
PRIVACY = Privacy(
    trust="local",
    sampling_rate=0.5,
    noise_multiplier=2.0,
    clipping_norm=1.0,
    steps=2,
    divisor=4.0,
    delta=1e-5,
)
PLAN = Plan(
    name="answers",
    task="classification",
    model="softmax",
    rounds=3,
    schema=SCHEMA,
    cohort=Cohort(clients=3, quorum=2, deadline=5.0),
    optimizer=Optimizer(learning_rate=0.5),
    privacy=PRIVACY,
    release=Release("answers"),
)
POLICY = Policy(
    dataset="answers-2030",
    budget=Budget.of(20.0, 1e-5),
    spare_rounds=2,
    approved_plans=(PLAN.digest,),  # counts in the guard; a custody keeps its own list
    simulated=True,
)
SHAPES = {"weight": (2, 2), "bias": (2,)}
HEADER = "height,weight,answer\n"
ROWS = ["0.5,-0.25,yes", "-0.5,0.75,no", "1,1,yes", "-1,0,no", "0.25,0.125,no"]


def model(value: float = 0.0) -> Arrays:
    """A global model: every parameter is ``value``."""
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


def signed(plan: Plan, key: SigningKey = COORDINATOR) -> bytes:
    return Envelope.sign(PLAN_TYPE, plan.encode(), [key]).encode()


def ask(
    round_: int = 1,
    arrays: Arrays | None = None,
    *,
    nonce: int = 1,
    key: SigningKey = COORDINATOR,
    **changes: Any,
) -> RoundRequest:
    """A request for one round of :data:`PLAN`, from a coordinator that saw no ledger yet."""
    request = RoundRequest(
        client="clinic-a",
        plan=PLAN.digest,
        run=RUN,
        incarnation=0,
        round=round_,
        model=digest_arrays(model() if arrays is None else arrays),
        nonce=f"{nonce:032x}",
        **seen(name=changes.get("client", "clinic-a"), key=key),
    )
    return replace(request, **changes)


def secret_of(name: str) -> bytes:
    """The secret of a client in these tests, so that its pseudonym is known to everybody here."""
    return hashlib.sha256(name.encode()).digest()


def who(name: str, coordinator: SigningKey = COORDINATOR) -> Identity:
    """What a client is to a coordinator's federation."""
    return Identity.derive(secret_of(name), coordinator.public.fingerprint)


def seen(
    chain: Sequence[Entry] = (), *, name: str = "clinic-a", key: SigningKey = COORDINATOR
) -> dict[str, Any]:
    """What a request says of a client's ledger, which the coordinator saw so far."""
    head = Head.of(key.public.fingerprint, who(name, key).pseudonym, chain)
    return {"entries": head.entries, "root": head.root, "signature": head.sign(key)}


def write_rows(path: Path, rows: list[str]) -> Path:
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


def make_home(
    path: Path,
    *,
    name: str = "clinic-a",
    rows: list[str] | None = None,
    plan: Plan | None = PLAN,
    policy: Policy = POLICY,
    seed: int | None = 7,
    coordinator: SigningKey = COORDINATOR,
) -> Home:
    """A client's directory under ``path``, whose owner approved ``plan``."""
    path.mkdir(parents=True, exist_ok=True)
    data = write_rows(path / f"{name}.csv", ROWS if rows is None else rows)
    custody = Custody(path / "custody" / name)
    home = Home(
        path=path / "clients" / name,
        client=name,
        coordinator=coordinator.public,
        owner=OWNER.public,
        custody=custody,
        keys=path / "keys",
        seed=seed,
        policy=custody.sign(replace(policy, dataset=f"{policy.dataset}.{name}"), OWNER),
        binding=Binding(source="csv", path=str(data)),
    )
    if not home.ledger.exists() and (seed is None or policy.simulated):
        KeyDirectory(home.keys).create_secret(home.policy.dataset)
        (home.keys / home.policy.dataset).write_bytes(secret_of(name))
        Ledger.create(home.ledger, secret_of(name))
    home.create()
    if plan is not None:
        approve(home, signed(plan, coordinator), OWNER)
    return home


def put_in_force(home: Home, **changes: Any) -> Policy:
    """The owner signs another policy for the data set of ``home``."""
    return home.custody.sign(replace(home.terms(), **changes), OWNER)


def make_client(path: Path, **options: Any) -> Client:
    return Client(make_home(path, **options))


def identity(home: Home) -> Identity:
    secret = KeyDirectory(home.keys).secret(home.policy.dataset)
    return Identity.derive(secret, home.federation)


@dataclass(frozen=True)
class Snapshot:
    """Every file under a directory, by relative name: to show that nothing on disk changed."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, path: Path) -> Snapshot:
        return cls(
            {
                file.relative_to(path).as_posix(): file.read_bytes()
                for file in sorted(path.rglob("*"))
                if file.is_file()
            }
        )


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a copy of this process that dies at its durable step ``step`` (1-based).

    Returns whether it died there; False: ``work`` has fewer steps, and was done to its end.
    """
    child = os.fork()
    if child == 0:
        try:
            os.environ[durable.FAULT_VARIABLE] = str(step)
            durable._steps = 0
            work()
        except BaseException:  # noqa: BLE001  (nothing may escape into the tests above)
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed: see its traceback"
    return False


# -- the server's side ---------------------------------------------------------------------------


def flower_identity() -> None:
    """What Flower sets before an app runs; its messages need it."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def leaves(count: int) -> list[bytes]:
    """The leaf hashes of every fake client's ledger: a longer one continues a shorter one."""
    return [hashlib.sha256(b"%d" % index).digest() for index in range(count)]


@dataclass
class FakeClient:
    """An enrolled client without data: it signs what a real one would, over leaves of its own.

    ``update`` for a round is a pattern of its name's; honest replies are checked against it.
    """

    name: str
    leaves: list[bytes] = field(default_factory=lambda: leaves(1))

    @property
    def key(self) -> SigningKey:
        return SigningKey.from_seed(self.name.encode().ljust(32, b"."))

    @property
    def pseudonym(self) -> str:
        return self.name.encode().hex().ljust(32, "0")

    def member(self) -> Member:
        return Member(self.name, self.pseudonym, self.key.public)

    def update(self, round_: int) -> Arrays:
        generator = np.random.default_rng([round_, *self.name.encode()])
        return {name: generator.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}

    def head(self, before: int) -> dict[str, Any]:
        """Its head, signed, and the proof that the first ``before`` leaves are a prefix."""
        head = Head(FEDERATION, self.pseudonym, len(self.leaves), merkle.root(self.leaves).hex())
        before = min(before, len(self.leaves))
        return {
            "entries": head.entries,
            "root": head.root,
            "signature": head.sign(self.key),
            "consistency": tuple(h.hex() for h in merkle.consistency_proof(self.leaves, before)),
        }

    def receipt(self, request: RoundRequest, update: Update, /, **changes: Any) -> bytes:
        receipt = Receipt(
            client=self.name,
            plan=request.plan,
            round=request.round,
            request=request.digest,
            intent="1" * 64,
            update=digest_update(update),
            **self.head(request.entries),
        )
        return replace(receipt, **changes).sign(self.key)

    def answer(self, request: RoundRequest) -> tuple[Arrays, bytes]:
        """An honest update and its receipt: an intent and a disclosure more."""
        self.leaves = leaves(len(self.leaves) + 2)
        update = self.update(request.round)
        return update, self.receipt(request, update)

    def close(self, closing: Closing) -> bytes:
        """An honest answer to the run's last word."""
        self.leaves = leaves(len(self.leaves) + 1)
        return Closed(self.name, closing.run, **self.head(closing.entries)).sign(self.key)


# -- an experiment file --------------------------------------------------------------------------

# Three holders of digits and two rounds of a softmax: a whole simulation in a few seconds.
EXPERIMENT = """\
[plan]
name = "small"
model = "softmax"
rounds = 2

[plan.schema]
kind = "image"
shape = [1, 8, 8]
upper = 16
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[plan.cohort]
clients = 3
quorum = 2
deadline = 60

[plan.optimizer]
learning_rate = 2.0

[plan.privacy]
trust = "local"
noise_multiplier = 4.0
delta = 1e-5
clipping_norm = 1.0
sampling_rate = 0.5
steps = 2
divisor = 200

[plan.release]
name = "digits"

[policy]
dataset = "digits"
budget = 8.0
delta = 1e-5
spare_rounds = 1
simulated = true

[data]
source = "digits"
test = "held-out"
clients = 3
partition = "unequal"

[simulation]
seed = 1
"""


def write_experiment(path: Path, text: str = EXPERIMENT) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    file = path / "small.toml"
    file.write_text(text)
    return file
