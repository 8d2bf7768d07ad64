"""The tree is RFC 6962's: known roots, every proof, and no proof for what is not so."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ledger import merkle
from common.ledger.merkle import (
    EMPTY,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    leaf_hash,
    node_hash,
    prefix_roots,
    root,
    root_of_last,
)

# The test vectors of Certificate Transparency's reference code (merkletree/merkle_tree_test.cc).
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(b"%d" % index) for index in range(count)]


def test_the_roots_are_those_of_the_reference_code() -> None:
    hashes = [leaf_hash(data) for data in INPUTS]
    assert hashlib.sha256().digest() == EMPTY == root([])
    assert [value.hex() for value in prefix_roots(hashes)[1:]] == ROOTS
    assert [root(hashes[:count]).hex() for count in range(1, 9)] == ROOTS


def test_the_proofs_are_those_of_the_reference_code() -> None:
    hashes = [leaf_hash(data) for data in INPUTS]
    assert [value.hex() for value in inclusion_proof(hashes[:5], 1)] == [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]
    assert [value.hex() for value in consistency_proof(hashes, 6)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def includes(hash_: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes) -> bool:
    """Whether ``proof`` shows leaf hash ``hash_`` at ``index`` of the tree ``expected``.

    RFC 9162, section 2.1.3.2, which is RFC 6962's tree with the algorithm written out.
    """
    if not 0 <= index < size:
        return False
    position, last = index, size - 1
    for sibling in proof:
        if last == 0:
            return False
        if position % 2 or position == last:
            hash_ = node_hash(sibling, hash_)
            while position and not position % 2:
                position, last = position >> 1, last >> 1
        else:
            hash_ = node_hash(hash_, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and hash_ == expected


@pytest.mark.parametrize("size", range(1, 34))
def test_every_leaf_of_every_tree_has_a_proof_and_no_other_place(size: int) -> None:
    hashes = leaves(size)
    top = root(hashes)
    for index in range(size):
        proof = inclusion_proof(hashes, index)
        assert includes(hashes[index], index, size, proof, top)
        for other in range(size):
            if other != index:
                assert not includes(hashes[other], index, size, proof, top)
                assert not includes(hashes[index], other, size, proof, top)
        assert not includes(hashes[index], index, size, [*proof, EMPTY], top)
        assert not includes(hashes[index], index, size, proof[:-1], top) or not proof
        assert not includes(hashes[index], size, size, proof, top)
        assert not includes(hashes[index], -1, size, proof, top)
    assert root_of_last(hashes[-1], size - 1, inclusion_proof(hashes, size - 1)) == top


@pytest.mark.parametrize("size", range(34))
def test_every_prefix_of_every_tree_is_consistent_and_nothing_else_is(size: int) -> None:
    hashes = leaves(size)
    roots = prefix_roots(hashes)
    for before in range(size + 1):
        proof = consistency_proof(hashes, before)
        assert is_consistent(before, size, roots[before], roots[size], proof)
        for forged in [leaf_hash(b"forged"), EMPTY, roots[size], roots[0]]:
            if forged != roots[before]:
                assert not is_consistent(before, size, forged, roots[size], proof)
            if forged != roots[size] and before:
                assert not is_consistent(before, size, roots[before], forged, proof)
        if proof:
            assert not is_consistent(before, size, roots[before], roots[size], proof[:-1])
        if before:
            longer = [*proof, EMPTY]
            assert not is_consistent(before, size, roots[before], roots[size], longer)
        assert not is_consistent(size + 1, size, roots[before], roots[size], proof)


@given(st.integers(1, 60), st.data())
def test_a_history_with_one_leaf_altered_has_no_consistency_proof(size: int, data) -> None:
    before = data.draw(st.integers(1, size))
    altered = data.draw(st.integers(0, before - 1))
    true, forged = leaves(size), leaves(size)
    forged[altered] = leaf_hash(b"altered")
    proof = consistency_proof(forged, before)
    assert not is_consistent(before, size, root(true[:before]), root(forged), proof)


def test_a_leaf_is_never_taken_for_an_inner_node() -> None:
    left, right = leaves(2)
    assert root([leaf_hash(left + right)]) != root([left, right])


@pytest.mark.parametrize("size", [0, 1, 5])
def test_what_is_not_there_has_no_proof(size: int) -> None:
    for index in (-1, size, size + 3):
        with pytest.raises(ValueError, match="no leaf"):
            inclusion_proof(leaves(size), index)
    for before in (-1, size + 1):
        with pytest.raises(ValueError, match="no prefix"):
            consistency_proof(leaves(size), before)
    with pytest.raises(ValueError, match="another path"):
        root_of_last(EMPTY, 5, [EMPTY])
    assert merkle.MAX_PROOF >= 63
