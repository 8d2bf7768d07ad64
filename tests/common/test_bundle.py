"""A bundle is exactly its files: nothing missing, added, linked, or of another form."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.bundle import MAX_FILE_BYTES, Bundle, Trust
from common.canonical import encode
from common.errors import InputError, TrustError
from tests.audit.bundle_fixtures import World, files, rewrite, trust_in

WORLD = World()
FIRST = WORLD.identity(0).pseudonym
LEDGER = f"ledgers/{FIRST}.jsonl"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    WORLD.bundle().write(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_comes_back_as_it_was_written(path: Path) -> None:
    bundle = WORLD.bundle()
    assert Bundle.read(path) == bundle
    before = files(path)
    bundle.write(path)
    assert files(path) == before
    assert set(before) == {"bundle.json", "plan.dsse.json", "statement.dsse.json"} | {
        name
        for i in range(2)
        for name in (
            f"ledgers/{WORLD.identity(i).pseudonym}.jsonl",
            f"heads/{WORLD.identity(i).pseudonym}.note",
        )
    }


def test_a_bundle_names_no_client_and_no_data_set(path: Path) -> None:
    content = b"".join(files(path).values())
    for private in (b"client-0", b"dataset", b"accuracy", b"loss", b"/"):
        # A slash is in base64, in URIs and in the names of ledger files; never before a path.
        assert private not in content.replace(b"ledgers/", b"") or private == b"/"
    assert str(path.parent).encode() not in content


def test_where_there_is_no_manifest_there_is_no_bundle(path: Path, tmp_path: Path) -> None:
    (path / "bundle.json").unlink()
    for place in (path, tmp_path / "absent", tmp_path / "a\0b"):
        with pytest.raises(InputError, match="is not a bundle") as caught:
            Bundle.read(place)
        assert caught.value.code == "no-bundle"


def refused(path: Path, words: str) -> None:
    before = files(path)
    with pytest.raises(TrustError) as caught:
        Bundle.read(path)
    assert words in str(caught.value)
    assert files(path) == before


@pytest.mark.parametrize("name", ["plan.dsse.json", "statement.dsse.json", LEDGER])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    refused(path, f"{name} is missing")


@pytest.mark.parametrize(
    "name", ["extra.txt", "ledgers/extra.jsonl", ".hidden", "deep/er/file", "ledgers/.x", "model"]
)
def test_a_file_that_is_not_listed_is_named(path: Path, name: str) -> None:
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(b"x")
    refused(path, "is not listed")


def test_an_empty_directory_is_a_stranger_too(path: Path) -> None:
    (path / "weights").mkdir()
    refused(path, "weights is not listed")


@pytest.mark.parametrize("name", ["bundle.json", "plan.dsse.json", LEDGER])
def test_a_link_in_a_files_place_is_refused(path: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "outside"
    (path / name).rename(target)
    (path / name).symlink_to(target)
    refused(path, f"{name} is missing, or is not a plain file")


def test_a_linked_directory_is_refused(path: Path, tmp_path: Path) -> None:
    (path / "ledgers").rename(tmp_path / "outside")
    (path / "ledgers").symlink_to(tmp_path / "outside")
    refused(path, "ledgers is a link")


@pytest.mark.parametrize("target", [".", "/", "nowhere"])
def test_a_link_more_is_a_stranger(path: Path, target: str) -> None:
    (path / "extra").symlink_to(target)
    with pytest.raises(TrustError, match="extra is not listed"):
        Bundle.read(path)


def test_a_pipe_in_a_files_place_does_not_hang(path: Path) -> None:
    (path / "plan.dsse.json").unlink()
    os.mkfifo(path / "plan.dsse.json")
    with pytest.raises(TrustError, match="not a plain file"):
        Bundle.read(path)


def test_an_oversized_file_is_refused_unread(path: Path) -> None:
    with open(path / LEDGER, "r+b") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(TrustError, match="is over"):
        Bundle.read(path)


def manifest(**changes: object) -> Callable[[dict], object]:
    return lambda document: {**document, **changes}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {},
        lambda m: {k: v for k, v in m.items() if k != "files"},
        lambda m: {k: v for k, v in m.items() if k != "clients"},
        manifest(extra=1),
        manifest(schema_version=1),
        manifest(schema_version=True),
        manifest(schema_version="1"),
        manifest(files=[]),
        manifest(files={}),
        manifest(signers={}),
        manifest(signers=None),
        manifest(clients={}),
        manifest(clients=[]),
        lambda m: {**m, "signers": {**m["signers"], "third": m["signers"]["approver"]}},
        lambda m: {**m, "signers": {"coordinator": m["signers"]["coordinator"]}},
        lambda m: {**m, "signers": {**m["signers"], "approver": "QUJD"}},
        lambda m: {**m, "signers": {**m["signers"], "approver": 5}},
        lambda m: {**m, "clients": {"../../etc": m["clients"][FIRST]}},
        lambda m: {**m, "clients": {**m["clients"], "0" * 32: m["clients"][FIRST]}},
        lambda m: {**m, "files": {**m["files"], "../outside": "0" * 64}},
        lambda m: {**m, "files": {**m["files"], LEDGER: "0" * 64}},
        lambda m: {**m, "files": {**m["files"], LEDGER: 5}},
        lambda m: {**m, "files": {k: v.upper() for k, v in m["files"].items()}},
    ],
)
def test_a_manifest_of_another_form_is_refused(path: Path, change) -> None:
    document = json.loads((path / "bundle.json").read_bytes())
    (path / "bundle.json").write_bytes(encode(change(document)))
    refused(path, "")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"{}\n", b'{"a":1.0}'])
def test_a_manifest_that_is_not_canonical_json_is_refused(path: Path, data: bytes) -> None:
    (path / "bundle.json").write_bytes(data)
    refused(path, "bundle.json: ")


def test_a_key_has_one_spelling_in_the_manifest(path: Path) -> None:
    data = (path / "bundle.json").read_bytes()
    key = json.loads(data)["signers"]["approver"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    # 32 bytes leave two bits of the last character without a meaning.
    twin = key[:-2] + alphabet[alphabet.index(key[-2]) ^ 1] + "="
    (path / "bundle.json").write_bytes(data.replace(key.encode(), twin.encode()))
    refused(path, "only spelling")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "entry 5: its line does not end"),
        (lambda data: data.replace(b"\n", b"\r\n"), "entry 0: bytes are not in canonical form"),
        (lambda data: data.replace(b"\n", b"\r", 1), "entry 0: "),
        (lambda data: data + b"\n", "entry 6: "),
        (lambda data: b"\n" + data, "entry 0: "),
        (lambda data: data + b"{}\n", "entry 6: a ledger entry has other fields"),
        (lambda data: data.replace(b'"seq":1', b'"seq":true'), "entry 1: "),
        (lambda data: data.replace(b'"schema_version":2', b'"schema_version":true'), "entry 0: "),
        (lambda data: b"\xff" + data, "entry 0: "),
    ],
)
def test_a_ledger_has_one_spelling_even_under_a_new_manifest(path, change, words: str) -> None:
    rewrite(path, LEDGER, change((path / LEDGER).read_bytes()))
    refused(path, words)


# -- trust files -----------------------------------------------------------------------------------


def test_a_trust_file_comes_back(tmp_path: Path) -> None:
    trust = trust_in(WORLD.bundle())
    trust.write(tmp_path / "trust.json")
    assert Trust.read(tmp_path / "trust.json") == trust


GOOD = {
    "schema_version": 1,
    "signers": {"coordinator": "a" * 64, "approver": "b" * 64},
    "clients": {"0" * 32: "c" * 64},
}


@pytest.mark.parametrize(
    "document",
    [
        {},
        {**GOOD, "extra": 1},
        {**GOOD, "schema_version": 1},
        {**GOOD, "schema_version": True},
        {**GOOD, "signers": {}},
        {**GOOD, "signers": {"coordinator": "a" * 64}},
        {**GOOD, "signers": {**GOOD["signers"], "third": "c" * 64}},
        {**GOOD, "signers": {"coordinator": "a" * 64, "approver": "b" * 63}},
        {**GOOD, "signers": {"coordinator": "a" * 64, "approver": None}},
        {**GOOD, "signers": None},
        {**GOOD, "clients": []},
        {**GOOD, "clients": {"0" * 32: "C" * 64}},
    ],
)
def test_a_trust_file_of_another_form_is_an_input_error(tmp_path: Path, document) -> None:
    file = tmp_path / "trust.json"
    file.write_bytes(encode(document))
    with pytest.raises(InputError, match="cannot use the trust file") as caught:
        Trust.read(file)
    assert caught.value.code == "bad-trust-file"


def test_a_missing_or_binary_trust_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff")
    for place in (tmp_path / "absent", tmp_path, tmp_path / "x"):
        with pytest.raises(InputError, match="cannot use the trust file"):
            Trust.read(place)
