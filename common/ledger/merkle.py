"""The Merkle tree over a ledger's entries: RFC 6962, sections 2.1 to 2.1.2. Pure.

The rules: a leaf and an inner node are hashed with different first bytes, so neither can be shown
as the other. A root commits to every leaf and their order. An inclusion proof shows that one leaf
is under a root; a consistency proof shows that an earlier tree is a prefix of a later one, so that
whoever kept one root notices a history that was cut off or written anew.

Hashes are 32 raw bytes. Sizes and indices count leaves from 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

MAX_PROOF = 64  # hashes: enough for 2**63 leaves

EMPTY = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A growing tree that keeps one hash for each complete subtree on its right edge.

    >>> tree = Frontier()
    >>> tree.root() == EMPTY
    True
    """

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[tuple[int, bytes]] = []  # (leaves under it, hash), large to small

    def append(self, hash_: bytes) -> None:
        """Add a leaf by its :func:`leaf_hash`."""
        self.size += 1
        self._edge.append((1, hash_))
        while len(self._edge) > 1 and self._edge[-1][0] == self._edge[-2][0]:
            (count, right), (_, left) = self._edge.pop(), self._edge.pop()
            self._edge.append((2 * count, node_hash(left, right)))

    def root(self) -> bytes:
        if not self._edge:
            return EMPTY
        hash_ = self._edge[-1][1]
        for _, left in reversed(self._edge[:-1]):
            hash_ = node_hash(left, hash_)
        return hash_


def root(hashes: Iterable[bytes]) -> bytes:
    """The Merkle tree hash of leaves, given by their leaf hashes."""
    tree = Frontier()
    for hash_ in hashes:
        tree.append(hash_)
    return tree.root()


def prefix_roots(hashes: Sequence[bytes]) -> list[bytes]:
    """The root of every prefix: item ``n`` is the root of the first ``n`` leaves."""
    tree, roots = Frontier(), [EMPTY]
    for hash_ in hashes:
        tree.append(hash_)
        roots.append(tree.root())
    return roots


def inclusion_proof(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of leaf ``index``, from the leaf to the root (section 2.1.1)."""
    if not 0 <= index < len(hashes):
        raise ValueError(f"no leaf {index} among {len(hashes)}")
    if len(hashes) == 1:
        return []
    split = _split(len(hashes))
    if index < split:
        return [*inclusion_proof(hashes[:split], index), root(hashes[split:])]
    return [*inclusion_proof(hashes[split:], index - split), root(hashes[:split])]


def root_of_last(hash_: bytes, index: int, proof: Sequence[bytes]) -> bytes:
    """The root of the tree whose last leaf is ``hash_``, at ``index``, if ``proof`` is its path.

    Every node on the way from the last leaf up is a right child, so the proof alone leads there.
    Whether that root is the one to believe is for its signatures.

    Raises:
        ValueError: the proof has another length than such a path.
    """
    if len(proof) != index.bit_count():
        raise ValueError(f"the last of {index + 1} leaves has another path")
    for sibling in proof:
        hash_ = node_hash(sibling, hash_)
    return hash_


def consistency_proof(hashes: Sequence[bytes], before: int) -> list[bytes]:
    """That the first ``before`` leaves are a prefix of all of them (section 2.1.2).

    Empty for ``before`` 0 or all: there is nothing to show, or nothing but equality.
    """
    if not 0 <= before <= len(hashes):
        raise ValueError(f"no prefix of {before} among {len(hashes)}")
    return _subproof(hashes, before, whole=True) if 0 < before < len(hashes) else []


def is_consistent(
    before: int, after: int, first: bytes, second: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether ``proof`` shows that tree ``first`` of ``before`` leaves is a prefix of ``second``.

    RFC 9162, section 2.1.4.2.
    """
    if not 0 <= before <= after:
        return False
    if before == 0:
        return first == EMPTY and not proof and (after > 0 or second == EMPTY)
    if before == after:
        return first == second and not proof
    path = list(proof)
    if before & (before - 1) == 0:  # a complete subtree is its own first node
        path.insert(0, first)
    if not path:
        return False
    node, last = before - 1, after - 1
    while node % 2:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for hash_ in path[1:]:
        if last == 0:
            return False
        if node % 2 or node == last:
            old, new = node_hash(hash_, old), node_hash(hash_, new)
            while node and not node % 2:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, hash_)
        node, last = node >> 1, last >> 1
    return last == 0 and (old, new) == (first, second)


def _split(size: int) -> int:
    """The largest power of two below ``size``, for ``size`` > 1."""
    return 1 << (size - 1).bit_length() - 1


def _subproof(hashes: Sequence[bytes], before: int, *, whole: bool) -> list[bytes]:
    if before == len(hashes):
        return [] if whole else [root(hashes)]
    split = _split(len(hashes))
    if before <= split:
        return [*_subproof(hashes[:split], before, whole=whole), root(hashes[split:])]
    return [*_subproof(hashes[split:], before - split, whole=False), root(hashes[:split])]
