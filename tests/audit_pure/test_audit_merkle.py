"""RFC 9162 section 2.1 against public vectors, a tree written as the RFC defines it, and mutations of its proofs."""

from __future__ import annotations

import hashlib
import json
import random
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit import merkle, verify
from app.audit.merkle import Frontier, ProofError

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "rfc6962_inclusion.json").read_text())
LEAVES = [merkle.leaf_hash(str(number).encode()) for number in range(130)]


def defined_root(leaves: list[bytes]) -> bytes:
    """MTH as section 2.1.1 writes it."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = max(1 << bit for bit in range(len(leaves).bit_length()) if 1 << bit < len(leaves))
    return hashlib.sha256(b"\x01" + defined_root(leaves[:k]) + defined_root(leaves[k:])).digest()


def grown(count: int = len(LEAVES)) -> dict[tuple[int, int], bytes]:
    frontier, nodes = Frontier(), {}
    for leaf in LEAVES[:count]:
        for level, index, hash_ in frontier.append(leaf):
            assert (level, index) not in nodes, "a node is completed once"
            nodes[level, index] = hash_
    return nodes


NODES = grown()
ROOTS = [defined_root(LEAVES[:size]) for size in range(len(LEAVES) + 1)]


def get(level: int, index: int) -> bytes:
    return NODES[level, index]


@pytest.mark.parametrize("vector", VECTORS["inclusion"], ids=lambda vector: vector["desc"])
def test_public_inclusion_vectors_hold(vector: dict[str, Any]) -> None:
    proof = [b64decode(hash_) for hash_ in vector["proof"] or []]
    leaf, root = b64decode(vector["leafHash"] or ""), b64decode(vector["root"] or "")
    if vector["wantErr"]:
        with pytest.raises(ProofError):
            merkle.verify_inclusion(vector["leafIdx"], vector["treeSize"], leaf, proof, root)
    else:
        merkle.verify_inclusion(vector["leafIdx"], vector["treeSize"], leaf, proof, root)


def test_the_public_tree_has_the_public_root() -> None:
    leaves = [merkle.leaf_hash(bytes.fromhex(text)) for text in VECTORS["leaf_inputs_hex"]]
    assert merkle.root(leaves).hex() == VECTORS["root_of_all_8"]


def test_a_root_is_what_the_rfc_defines() -> None:
    for size, root in enumerate(ROOTS):
        assert merkle.root(LEAVES[:size]) == root
        assert merkle.root_at(size, get) == root


def test_only_perfect_subtrees_are_kept_and_none_is_missing() -> None:
    expected = {(level, index) for level in range(8) for index in range(len(LEAVES) >> level)}
    assert set(NODES) == expected


def test_every_leaf_of_every_tree_proves_its_place() -> None:
    for size in range(1, 70):
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, get)
            merkle.verify_inclusion(index, size, LEAVES[index], proof, ROOTS[size])


def test_every_tree_extends_every_smaller_one_and_both_implementations_agree() -> None:
    for new in range(1, len(LEAVES) + 1, 3):
        for old in range(1, new + 1):
            proof = merkle.consistency_proof(old, new, get)
            merkle.verify_consistency(old, new, proof, ROOTS[old], ROOTS[new])
            assert verify.consistent(old, new, proof, ROOTS[old], ROOTS[new])


def mutations(proof: list[bytes], rng: random.Random) -> list[list[bytes]]:
    """Proofs of other lengths, orders, bits and hash lengths."""
    extra = rng.randbytes(32)
    made = [[*proof, extra], [extra, *proof], proof[:-1], proof[1:], proof[::-1], [*proof, *proof], []]
    for at in range(len(proof)):
        flipped = bytes([proof[at][0] ^ 1 << rng.randrange(8)]) + proof[at][1:]
        made += [[*proof[:at], flipped, *proof[at + 1 :]], [*proof[:at], proof[at][:31], *proof[at + 1 :]]]
        made += [[*proof[:at], b"", *proof[at + 1 :]], [*proof[:at], *proof[at + 1 :]], [*proof[: at + 1], *proof[at:]]]
    return [other for other in made if other != proof]


def test_a_changed_inclusion_proof_is_refused() -> None:
    rng, refused = random.Random(1), 0
    for size in (1, 2, 3, 7, 8, 9, 64, 100, 128):
        for index in {0, size // 2, size - 1}:
            for other in mutations(merkle.inclusion_proof(index, size, get), rng):
                with pytest.raises(ProofError):
                    merkle.verify_inclusion(index, size, LEAVES[index], other, ROOTS[size])
                refused += 1
    assert refused > 500


def test_a_changed_consistency_proof_is_refused_by_both_implementations() -> None:
    rng, refused = random.Random(2), 0
    for new in (2, 3, 7, 8, 9, 64, 65, 100, 128):
        for old in {1, 2, new // 2 or 1, new - 1, new}:
            for other in mutations(merkle.consistency_proof(old, new, get), rng):
                with pytest.raises(ProofError):
                    merkle.verify_consistency(old, new, other, ROOTS[old], ROOTS[new])
                assert not verify.consistent(old, new, other, ROOTS[old], ROOTS[new])
                refused += 1
    assert refused > 800


def test_a_consistency_proof_with_other_sizes_or_roots_is_refused() -> None:
    refused = 0
    for old, new in ((1, 2), (3, 7), (4, 8), (6, 9), (64, 100), (100, 128)):
        proof = merkle.consistency_proof(old, new, get)
        others = [
            (o, n, ROOTS[a], ROOTS[b])
            for o in (old - 1, old, old + 1)
            for n in (new - 1, new, new + 1)
            for a in (old, old + 1, new)
            for b in (new, new - 1, old)
            if (o, n, a, b) != (old, new, old, new)
        ]
        for o, n, old_root, new_root in others:
            try:
                merkle.verify_consistency(o, n, proof, old_root, new_root)
            except ProofError:
                assert not verify.consistent(o, n, proof, old_root, new_root)
                refused += 1
            else:
                assert verify.consistent(o, n, proof, old_root, new_root)
                assert (old_root, new_root) == (ROOTS[old], ROOTS[new]), "only a proof that fits several sizes passes"
    assert refused > 300


def test_consistency_from_the_empty_tree_is_refused() -> None:
    with pytest.raises(ProofError, match="empty"):
        merkle.consistency_proof(0, 5, get)
    with pytest.raises(ProofError, match="empty"):
        merkle.verify_consistency(0, 5, [], ROOTS[0], ROOTS[5])
    with pytest.raises(ProofError, match="empty"):
        merkle.verify_consistency(0, 0, [], ROOTS[0], ROOTS[0])
    assert not verify.consistent(0, 5, [], ROOTS[0], ROOTS[5])


@pytest.mark.parametrize("sizes", [(5, 4), (-1, 4), (1, 1 << 64)])
def test_a_tree_never_shrinks(sizes: tuple[int, int]) -> None:
    with pytest.raises(ProofError):
        merkle.verify_consistency(*sizes, [], ROOTS[4], ROOTS[4])


@given(st.data())
@settings(deadline=None)
def test_a_range_proves_its_place_and_nothing_else(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(LEAVES)))
    first = data.draw(st.integers(0, size))
    end = data.draw(st.integers(first, size))
    left, right = merkle.range_proof(first, end, size, get)
    leaves = LEAVES[first:end]
    merkle.verify_range(first, leaves, left, right, size=size, root=ROOTS[size])
    edge = verify.Edge(first, left)
    for leaf in leaves:
        edge.add(leaf)
    assert edge.completed(size, right) == ROOTS[size]
    if leaves:
        with pytest.raises(ProofError):
            merkle.verify_range(first, leaves[:-1], left, right, size=size, root=ROOTS[size])
        with pytest.raises(ProofError):
            merkle.verify_range(first, [*leaves[:-1], bytes(32)], left, right, size=size, root=ROOTS[size])


@given(st.integers(0, 129))
def test_a_frontier_goes_on_after_being_stored(size: int) -> None:
    frontier = Frontier(size, [get(*node) for node in merkle.cover(0, size)])
    again = Frontier.from_bytes(frontier.to_bytes())
    assert (again.size, again.nodes, again.root()) == (size, frontier.nodes, ROOTS[size])
    again.append(LEAVES[size])
    assert again.root() == ROOTS[size + 1]


@pytest.mark.parametrize("data", [b"", bytes(7), bytes(9), bytes(40), b"\0" * 7 + b"\1", b"\0" * 7 + b"\3" + bytes(32)])
def test_a_malformed_frontier_is_refused(data: bytes) -> None:
    with pytest.raises(ProofError):
        Frontier.from_bytes(data)


def test_a_subtree_goes_only_where_it_fits() -> None:
    frontier = Frontier()
    frontier.append(LEAVES[0])
    for level in (1, 5, -1, 70):
        with pytest.raises(ProofError):
            frontier.append_subtree(level, LEAVES[1])
    with pytest.raises(ProofError):
        frontier.append(b"short")
    assert frontier.root() == ROOTS[1]


@pytest.mark.parametrize(("index", "size"), [(-1, 4), (4, 4), (0, 0)])
def test_a_leaf_outside_the_tree_has_no_proof(index: int, size: int) -> None:
    with pytest.raises(ProofError):
        merkle.inclusion_proof(index, size, get)


def test_many_leaves_at_once_complete_the_same_subtrees() -> None:
    rng = random.Random(20261123)
    for _ in range(400):
        before, count = rng.randrange(300), rng.randrange(1, 300)
        one, many = merkle.Frontier(), merkle.Frontier()
        for _ in range(before):
            leaf = rng.randbytes(32)
            one.append(leaf)
            many.append(leaf)
        leaves = [rng.randbytes(32) for _ in range(count)]
        expected = [node for leaf in leaves for node in one.append(leaf)]
        runs = many.extend(leaves)
        found = [(level, first + n, hash_) for level, first, row in runs for n, hash_ in enumerate(row)]
        assert sorted(found) == sorted(expected)
        assert (many.size, many.nodes, many.root()) == (one.size, one.nodes, one.root())
    with pytest.raises(merkle.ProofError):
        merkle.Frontier(merkle.MAX_SIZE, [b"x" * 32] * 63).extend([b"y" * 32])
    with pytest.raises(merkle.ProofError):
        merkle.Frontier().extend([b"short"])
