"""The Merkle tree of RFC 9162 section 2.1: hashes, proofs and their verification, and the right edge that grows.

A tree is addressed by perfect subtrees: node (level, index) covers leaves [index * 2^level, (index + 1) * 2^level).
A perfect subtree never changes, so a store keeps only those and never overwrites one. Verification raises ProofError
and returns nothing: there is no result that a caller could forget to look at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
MAX_SIZE = (1 << 63) - 1

NodeSource = Callable[[int, int], bytes]
"""``get(level, index)``: the hash of a perfect subtree."""

Node = tuple[int, int, bytes]
"""(level, index, hash) of a perfect subtree."""

Run = tuple[int, int, Sequence[bytes]]
"""(level, index, hashes) of perfect subtrees that stand side by side, from that index on."""


class ProofError(ValueError):
    """A proof doesn't prove what it should, or a tree's numbers make no sense."""


def leaf_hash(entry: bytes) -> bytes:
    """RFC 9162 section 2.1.1: SHA-256(0x00 || entry)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 9162 section 2.1.1: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(count: int) -> int:
    """The largest power of two below ``count``, for ``count`` of 2 or more."""
    return 1 << ((count - 1).bit_length() - 1)


def cover(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The fewest perfect subtrees (level, index) that cover leaves [begin, end), from left to right."""
    while begin < end:
        level = (end - begin).bit_length() - 1
        if begin:
            level = min(level, (begin & -begin).bit_length() - 1)
        yield level, begin >> level
        begin += 1 << level


class Frontier:
    """The right edge of a tree: the perfect subtrees of ``cover(0, size)``, from left to right.

    The sealer keeps one for each log and appends to it; it holds at most one hash per level.
    """

    __slots__ = ("nodes", "size")

    def __init__(self, size: int = 0, nodes: Sequence[bytes] = ()) -> None:
        if not 0 <= size <= MAX_SIZE:
            raise ProofError("a tree's size is out of range")
        if len(nodes) != size.bit_count():
            raise ProofError("a tree's right edge has one hash for each one-bit of its size")
        _check_hashes(nodes)
        self.size = size
        self.nodes = list(nodes)

    def append(self, leaf: bytes) -> list[Node]:
        """Add a leaf hash. Returns the subtrees that this completes, the leaf itself first: what a store must keep."""
        return self.append_subtree(0, leaf)

    def extend(self, leaves: Sequence[bytes]) -> list[Run]:
        """Add leaf hashes. Returns the subtrees that they complete, level by level: the same as ``append`` of each."""
        _check_hashes(leaves)
        if self.size + len(leaves) > MAX_SIZE:
            raise ProofError("a tree's size is out of range")
        edge = {level: hash_ for (level, _), hash_ in zip(cover(0, self.size), self.nodes, strict=True)}
        runs: list[Run] = []
        level, first, row = 0, self.size, list(leaves)
        while row:
            runs.append((level, first, row))
            if first & 1:
                row, first = [edge.pop(level), *row], first - 1
            if len(row) & 1:
                edge[level] = row[-1]
            row = [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=False)]
            level, first = level + 1, first >> 1
        self.size += len(leaves)
        self.nodes = [edge[level] for level in sorted(edge, reverse=True)]
        return runs

    def append_subtree(self, level: int, hash_: bytes) -> list[Node]:
        """Add a perfect subtree of 2^level leaves, whose place must be aligned to its size."""
        _check_hashes((hash_,))
        if level < 0 or self.size & ((1 << level) - 1) or self.size + (1 << level) > MAX_SIZE:
            raise ProofError("a subtree doesn't fit where the tree ends")
        index = self.size >> level
        self.size += 1 << level
        completed = [(level, index, hash_)]
        while index & 1:
            hash_ = node_hash(self.nodes.pop(), hash_)
            level, index = level + 1, index >> 1
            completed.append((level, index, hash_))
        self.nodes.append(hash_)
        return completed

    def root(self) -> bytes:
        """The tree's root hash; of the empty tree SHA-256 of nothing."""
        if not self.nodes:
            return EMPTY_ROOT
        hash_ = self.nodes[-1]
        for left in reversed(self.nodes[:-1]):
            hash_ = node_hash(left, hash_)
        return hash_

    def copy(self) -> Frontier:
        return Frontier(self.size, self.nodes)

    def to_bytes(self) -> bytes:
        """8 bytes of size, big-endian, then the hashes from left to right."""
        return self.size.to_bytes(8, "big") + b"".join(self.nodes)

    @classmethod
    def from_bytes(cls, data: bytes) -> Frontier:
        if len(data) < 8 or len(data) % HASH_BYTES != 8:
            raise ProofError("a tree's right edge has a wrong length")
        size = int.from_bytes(data[:8], "big")
        return cls(size, split_hashes(data[8:]))


def split_hashes(data: bytes) -> list[bytes]:
    """``data`` cut into 32-byte hashes."""
    if len(data) % HASH_BYTES:
        raise ProofError("a list of hashes has a wrong length")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def _check_hashes(hashes: Iterable[bytes]) -> None:
    for hash_ in hashes:
        if len(hash_) != HASH_BYTES:
            raise ProofError("a hash has a wrong length")


def root(leaves: Iterable[bytes]) -> bytes:
    """The root of the tree over these leaf hashes: MTH of RFC 9162 section 2.1.1."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def root_at(size: int, get: NodeSource) -> bytes:
    """The root that the tree had at ``size``."""
    return Frontier(size, [get(level, index) for level, index in cover(0, size)]).root()


def _subtree(begin: int, end: int, get: NodeSource) -> bytes:
    """MTH(D[begin:end]) where ``begin`` is aligned to the range's size, as in every step of RFC 9162's recursions."""
    count = end - begin
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return get(level, begin >> level)
    middle = begin + _split(count)
    return node_hash(_subtree(begin, middle, get), _subtree(middle, end, get))


def inclusion_proof(index: int, size: int, get: NodeSource) -> list[bytes]:
    """PATH(index, D[size]) of RFC 9162 section 2.1.3.1: from the leaf's sibling up to the root's child."""
    if not 0 <= index < size <= MAX_SIZE:
        raise ProofError("the leaf is not in the tree")
    proof: list[bytes] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            proof.append(_subtree(middle, end, get))
            end = middle
        else:
            proof.append(_subtree(begin, middle, get))
            begin = middle
    return proof[::-1]


def consistency_proof(old_size: int, new_size: int, get: NodeSource) -> list[bytes]:
    """PROOF(old_size, D[new_size]) of RFC 9162 section 2.1.4.1. Empty for equal sizes; refused from size 0."""
    _check_growth(old_size, new_size)
    proof: list[bytes] = []
    begin, end = 0, new_size
    while old_size != end:
        middle = begin + _split(end - begin)
        if old_size <= middle:
            proof.append(_subtree(middle, end, get))
            end = middle
        else:
            proof.append(_subtree(begin, middle, get))
            begin = middle
    if begin:  # the old tree's last subtree is not the old tree itself, so the verifier can't know it
        proof.append(_subtree(begin, end, get))
    return proof[::-1]


def range_proof(first: int, end: int, size: int, get: NodeSource) -> tuple[list[bytes], list[bytes]]:
    """What leaves [first, end) need to yield the root at ``size``: subtrees to their left and to their right."""
    if not 0 <= first <= end <= size <= MAX_SIZE:
        raise ProofError("the range is not in the tree")
    return [get(*node) for node in cover(0, first)], [get(*node) for node in cover(end, size)]


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], expected_root: bytes) -> None:
    """RFC 9162 section 2.1.3.2. Raises ProofError unless ``leaf`` is number ``index`` of the tree with that root."""
    _check_hashes((leaf, expected_root, *proof))
    if not 0 <= index < size <= MAX_SIZE:
        raise ProofError("the leaf is not in the tree")
    node, last, hash_ = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long")
        if node & 1 or node == last:
            hash_ = node_hash(sibling, hash_)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            hash_ = node_hash(hash_, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise ProofError("the inclusion proof is too short")
    if hash_ != expected_root:
        raise ProofError("the inclusion proof leads to another root")


def verify_consistency(old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """RFC 9162 section 2.1.4.2. Raises ProofError unless the new tree starts with all leaves of the old one.

    Refused from size 0, where the proof would be empty and say nothing about ``new_root``.
    """
    _check_hashes((old_root, new_root, *proof))
    _check_growth(old_size, new_size)
    if old_size == new_size:
        if proof or old_root != new_root:
            raise ProofError("trees of one size have two roots, or a proof that they don't need")
        return
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise ProofError("the consistency proof is too short")
    old_hash, new_hash = _fold_consistency(old_size, new_size, path)
    if old_hash != old_root:
        raise ProofError("the consistency proof leads to another old root")
    if new_hash != new_root:
        raise ProofError("the consistency proof leads to another new root")


def _fold_consistency(old_size: int, new_size: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Steps 4 to 6 of RFC 9162 section 2.1.4.2."""
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old_hash = new_hash = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError("the consistency proof is too long")
        if node & 1 or node == last:
            old_hash, new_hash = node_hash(sibling, old_hash), node_hash(sibling, new_hash)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new_hash = node_hash(new_hash, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise ProofError("the consistency proof is too short")
    return old_hash, new_hash


def _check_growth(old_size: int, new_size: int) -> None:
    if old_size == 0:
        raise ProofError("consistency with the empty tree means nothing")
    if not 0 < old_size <= new_size <= MAX_SIZE:
        raise ProofError("the new tree is smaller than the old one")


def verify_range(
    first: int, leaves: Iterable[bytes], left: Sequence[bytes], right: Sequence[bytes], *, size: int, root: bytes
) -> None:
    """Raises ProofError unless ``leaves`` are exactly those from ``first`` on in the tree of that size and root."""
    frontier = Frontier(first, left)
    for leaf in leaves:
        frontier.append(leaf)
    if frontier.size > size:
        raise ProofError("the range is not in the tree")
    for (level, _), hash_ in zip(_same_length(cover(frontier.size, size), right), right, strict=True):
        frontier.append_subtree(level, hash_)
    if frontier.root() != root:
        raise ProofError("the range leads to another root")


def _same_length(nodes: Iterable[tuple[int, int]], hashes: Sequence[bytes]) -> list[tuple[int, int]]:
    listed = list(nodes)
    if len(listed) != len(hashes):
        raise ProofError("the range proof has a wrong length")
    return listed
