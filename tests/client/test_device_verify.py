"""The verifier on bytes alone: no repository, no clock."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import hostile
from client.device import verify as device
from client.device.verify import Candidate, verify
from common import weights
from common.canonical import decode, encode
from common.errors import TrustError
from server.release import release as publisher
from tests.client.device_fixtures import (
    APPROVER,
    COORDINATOR,
    POLICY,
    RECORDS,
    RECOVERY,
    SCHEMA,
    STRANGER,
    Linear,
    Recipe,
    replaced,
    safetensors,
    safetensors_of,
)

KEYS = (COORDINATOR.public, APPROVER.public, RECOVERY.public)
RECIPE = Recipe(version=7)
FILES = RECIPE.files()


def check(files: dict[str, bytes], **changes: object) -> Candidate:
    return verify(files, replace(POLICY, **changes), KEYS, successors=dict)


def refused(files: dict[str, bytes], **changes: object) -> TrustError:
    with pytest.raises(TrustError) as caught:
        check(files, **changes)
    assert caught.value.exit_code == 11
    return caught.value


def relabelled(**changes: object) -> dict[str, bytes]:
    """The release with fields of ``release.json`` changed."""
    return FILES | {"release.json": encode({**decode(FILES["release.json"]), **changes})}


def with_file(name: str, data: bytes) -> dict[str, bytes]:
    """The release with one file replaced, and ``release.json`` made to fit."""
    return replaced(FILES, {name: data})


# -- the whole -------------------------------------------------------------------------------------


def test_a_genuine_release_is_verified() -> None:
    candidate = check(FILES)
    claims = candidate.claims
    assert (claims.name, claims.version, claims.simulated) == ("clinic-linear", 7, False)
    assert (claims.epsilon, claims.delta, claims.unit) == (2.0, 1e-5, "record")
    np.testing.assert_allclose(
        candidate.session.predict(RECORDS), RECIPE.model.answer(RECORDS), atol=1e-6
    )


def test_publisher_and_device_name_the_same_files() -> None:
    names = ("WEIGHTS", "MODEL", "ANSWERS", "STATEMENT", "RELEASE")
    assert [getattr(publisher, n) for n in names] == [getattr(device, n) for n in names]
    assert set(FILES) == set(device.LIMITS)


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_flipped_byte_of_any_file_is_accepted_even_without_tuf(name: str) -> None:
    """What TUF does not cover on a stolen disk, signatures and digests still do."""
    draw = random.Random(5)
    for _ in range(100):
        flipped = bytearray(FILES[name])
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.choice((0, 1, 2, 3, 4, 6, 7))
        refused(FILES | {name: bytes(flipped)})


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_or_truncated_file_is_refused(name: str) -> None:
    refused({other: data for other, data in FILES.items() if other != name})
    refused(FILES | {name: FILES[name][:-1]})
    refused(FILES | {name: b""})
    refused({**FILES, "more.bin": b""})


# -- statement and release -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signers",
    [
        (COORDINATOR,),
        (COORDINATOR, COORDINATOR),
        (COORDINATOR, STRANGER),
        (COORDINATOR, RECOVERY),
        (STRANGER, RECOVERY),
    ],
    ids=["one", "one twice", "a stranger", "a key that the policy does not name", "none"],
)
def test_a_statement_without_both_signers_is_refused(signers) -> None:
    assert refused(replace(RECIPE, statement_signers=signers).files()).code == "bad-signature"


def test_a_key_counts_by_its_fingerprint_wherever_it_came_from() -> None:
    with pytest.raises(TrustError):
        verify(FILES, POLICY, [STRANGER.public], successors=dict)
    assert verify(FILES, POLICY, reversed(KEYS), successors=dict).claims.version == 7


def test_a_statement_of_another_type_is_refused() -> None:
    envelope = json.loads(FILES["statement.dsse.json"])
    envelope["payloadType"] = "text/plain"
    refused(with_file("statement.dsse.json", encode(envelope)))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"version": 8}, "statement"),
        ({"name": "other"}, "statement"),
        ({"plan": "00" * 32}, "statement"),
        ({"simulated": True}, "statement"),
        (
            {"schema": decode(FILES["release.json"])["schema"] | {"classes": ["a", "b", "c"]}},
            "schema",
        ),
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2}, "schema_version"),
        ({"output": "logits"}, "output"),
        ({"version": 0}, "version"),
        ({"version": True}, "version"),
    ],
)
def test_a_release_that_says_otherwise_than_its_statement_is_refused(changes, word: str) -> None:
    assert word in refused(relabelled(**changes)).message


def test_a_statement_that_names_simulated_noise_counts_as_simulated() -> None:
    files = replace(RECIPE, predicate={"noise": ["cryptographic", "simulated"]}).files()
    assert refused(files).code == "simulated"
    assert check(files, accept_simulated=True).claims.version == 7


@pytest.mark.parametrize("epsilon", ["inf", "nan", "-1.0", "2", "2.00", "", 2, None])
def test_an_epsilon_that_is_no_canonical_number_is_refused(epsilon) -> None:
    """Signed by both, all the same."""
    files = replace(RECIPE, predicate={"epsilon": epsilon}).files()
    if epsilon == 2:
        assert check(files).claims.epsilon == 2.0  # a whole number is one
    else:
        assert "epsilon" in refused(files).message


def test_the_owners_limits_are_inclusive() -> None:
    assert check(FILES, greatest_epsilon=2.0).claims.epsilon == 2.0
    assert refused(FILES, greatest_epsilon=1.999).code == "policy"
    assert refused(FILES, greatest_delta=9e-6).code == "policy"


def test_a_version_below_the_floor_is_refused() -> None:
    assert verify(FILES, POLICY, KEYS, successors=dict, floor=7).claims.version == 7
    with pytest.raises(TrustError) as caught:
        verify(FILES, POLICY, KEYS, successors=dict, floor=8)
    assert caught.value.code == "rollback"


# -- weights ---------------------------------------------------------------------------------------

ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def test_sound_weights_pass() -> None:
    weights.check(Linear(1).safetensors())
    header = b'{"__metadata__":{"format":"pt"},"w":' + ENTRY.encode() + b"}   "
    weights.check(safetensors_of(header, bytes(4)))


@pytest.mark.parametrize(
    ("header", "body", "why"),
    [
        (f'{{"w":{ENTRY},"w":{ENTRY}}}', bytes(4), "twice"),
        (f'{{"w":{ENTRY}}}', struct.pack("<f", float("nan")), "finite"),
        (f'{{"w":{ENTRY}}}', struct.pack("<f", float("inf")), "finite"),
        (
            f'{{"w":{ENTRY.replace("F32", "BF16").replace("[0,4]", "[0,2]")}}}',
            b"\x80\x7f",
            "finite",
        ),
        (f'{{"w":{ENTRY}}}', bytes(5), "end at byte"),
        (f'{{"w":{ENTRY}}}', bytes(3), "bytes 0 to 4"),
        (f'{{"w":{ENTRY},"v":{ENTRY}}}', bytes(4), "bytes 0 to 4"),
        (f'{{"w":{ENTRY.replace("[0,4]", "[4,8]")}}}', bytes(8), "bytes 4 to 8"),
        (f'{{"w":{ENTRY.replace("[1]", "[2]")}}}', bytes(4), "4 bytes for shape"),
        (f'{{"w":{ENTRY.replace("[1]", "[0]").replace("[0,4]", "[0,0]")}}}', b"", "0 bytes"),
        (f'{{"w":{ENTRY.replace("[1]", "[-1]")}}}', bytes(4), "malformed"),
        (f'{{"w":{ENTRY.replace("[1]", "[true]")}}}', bytes(4), "malformed"),
        (f'{{"w":{ENTRY.replace("F32", "PICKLE")}}}', bytes(4), "dtype"),
        (f'{{"w":{ENTRY[:-1]},"more":1}}}}', bytes(4), "exactly"),
        ("{" + " " * weights.MAX_HEADER_BYTES + "}", b"", "claims"),
        ("[" * 60_000, b"", "not an object"),
        ('{"w":' + "[" * 60_000, b"", "not JSON"),
        ("{}", b"", "no tensor"),
        ('{"__metadata__":{"a":1}}', b"", "texts"),
    ],
)
def test_weights_that_two_readers_could_read_differently_are_refused(
    header: str, body: bytes, why: str
) -> None:
    data = safetensors_of(header.encode(), body)
    with pytest.raises(TrustError, match=why):
        weights.check(data)
    refused(replace(RECIPE, weights=data).files())


@pytest.mark.parametrize(
    "tensors",
    [
        {"bias": np.zeros(3, np.float32)},
        {"bias": np.zeros(3, np.float32), "weights": np.zeros((4, 3), np.float32)},
        {"bias": np.zeros(3, np.float32), "weight": np.zeros((3, 4), np.float32)},
        {"bias": np.zeros(3, np.float32), "weight": np.zeros(12, np.float32)},
    ],
    ids=["one is missing", "another name", "another shape", "flat"],
)
def test_weights_with_other_tensors_than_the_release_names_are_refused(tensors) -> None:
    """Both parties sign the file all the same."""
    error = refused(replace(RECIPE, weights=safetensors(tensors)).files())
    assert error.code == "other-tensors"
    assert "weight" in error.message


def test_a_release_names_every_tensor_with_type_and_shape() -> None:
    assert decode(FILES["release.json"])["tensors"] == {
        "bias": {"dtype": "F32", "shape": [3]},
        "weight": {"dtype": "F32", "shape": [4, 3]},
    }


def test_a_header_length_of_two_to_the_63_is_refused_at_once() -> None:
    with pytest.raises(TrustError, match="claims"):
        weights.check(struct.pack("<Q", 2**63) + b"{}")


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_weights_check(data: bytes) -> None:
    for candidate in (data, safetensors_of(b"{" + data, data)):
        with pytest.raises(TrustError):
            weights.check(candidate)


def test_a_sound_file_of_many_tensors_passes_in_any_order() -> None:
    tensors = {f"t{i}": np.full((i + 1,), i, np.float32) for i in range(20)}
    data = safetensors(tensors)
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    shuffled = dict(sorted(header.items(), key=lambda item: item[0][::-1]))
    weights.check(safetensors_of(json.dumps(shuffled).encode(), data[8 + length :]))


# -- hostile files -------------------------------------------------------------------------------

MODEL_CODES = {"bad-model", "unknown-operator", "external-data"}
HOSTILE = {
    **{("model.safetensors", name): data for name, data in hostile.weights().items()},
    **{("model.onnx", name): data for name, data in hostile.models().items()},
    **{
        (file, name): data
        for file in ("known-answers.json", "statement.dsse.json", "release.json")
        for name, data in hostile.archives().items()
    },
}


@pytest.mark.parametrize("which", HOSTILE, ids="-".join)
def test_a_hostile_file_that_both_parties_signed_is_refused(which: tuple[str, str]) -> None:
    """Signatures say who made a file, not that it is harmless."""
    name, _ = which
    field = {"model.safetensors": "weights", "model.onnx": "onnx_file"}.get(name)
    if field is None:
        whole = FILES | {name: HOSTILE[which]}
        refused(whole if name == "release.json" else with_file(name, HOSTILE[which]))
        return
    error = refused(replace(RECIPE, **{field: HOSTILE[which]}).files())
    codes = {"bad-weights"} if field == "weights" else MODEL_CODES
    assert error.code in codes
    assert error.hint


# -- the model -------------------------------------------------------------------------------------


def test_a_model_with_its_weights_in_another_file_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Signed by both, and with the other file where the device runs."""
    monkeypatch.chdir(tmp_path)
    onnx.save_model(
        RECIPE.model.onnx(),
        "outside.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    with pytest.raises(TrustError) as caught:
        device.Session((tmp_path / "outside.onnx").read_bytes(), SCHEMA)
    assert caught.value.code == "external-data"


def test_a_model_that_answers_otherwise_than_it_should_is_refused() -> None:
    answers = decode(FILES["known-answers.json"])
    first = answers["vectors"][0]["probabilities"]
    answers["vectors"][0]["probabilities"] = [first[1], first[0], first[2]]
    assert refused(with_file("known-answers.json", encode(answers))).code == "wrong-answer"


@pytest.mark.parametrize("tolerance", ["0.02", "0.0", "-1.0", "1.0"])
def test_a_tolerance_that_voids_the_known_answers_is_refused(tolerance: str) -> None:
    answers = {**decode(FILES["known-answers.json"]), "tolerance": tolerance}
    assert "tolerance" in refused(with_file("known-answers.json", encode(answers))).message


@pytest.mark.parametrize(
    "change",
    [
        {"vectors": []},
        {"vectors": [{"input": ["1.0"], "probabilities": ["1.0"]}]},
        {"vectors": [{"input": []}]},
        {"vectors": [1]},
        {"vectors": 3},
        {"more": 1},
    ],
)
def test_malformed_known_answers_are_refused(change) -> None:
    answers = {**decode(FILES["known-answers.json"]), **change}
    assert "known answers" in refused(with_file("known-answers.json", encode(answers))).message
