# ruff: noqa: ASYNC240  a test of files
"""The key file of the local provider: who may read it, and what its absence means."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest

from app.crypto.secret import SecretKey
from app.kms.local import LocalProvider
from app.kms.provider import KmsDenied, KmsError, KmsIntegrity, KmsMisconfigured, WrapContext

CONTEXT = WrapContext({"confide:tenant": "t"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kek"


def test_the_file_is_made_whole_with_mode_0600_and_nothing_beside_it(path: Path) -> None:
    provider = LocalProvider.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["kek"]
    assert LocalProvider.load(path).kek_uri == provider.kek_uri


def test_a_key_file_is_never_replaced(path: Path) -> None:
    LocalProvider.create(path)
    before = path.read_bytes()
    with pytest.raises(KmsMisconfigured):
        LocalProvider.create(path)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o700, 0o777])
def test_wider_modes_are_refused(path: Path, mode: int) -> None:
    LocalProvider.create(path)
    path.chmod(mode)
    with pytest.raises(KmsMisconfigured):
        LocalProvider.load(path)


def test_links_pipes_and_folders_are_refused(path: Path) -> None:
    LocalProvider.create(path)
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(KmsMisconfigured):
        LocalProvider.load(link)
    os.link(path, path.with_name("second-name"))
    with pytest.raises(KmsMisconfigured):
        LocalProvider.load(path)
    pipe = path.with_name("pipe")
    os.mkfifo(pipe, 0o600)
    with pytest.raises(KmsMisconfigured):
        LocalProvider.load(pipe)
    with pytest.raises(KmsError):
        LocalProvider.load(path.parent)


@pytest.mark.parametrize("change", [b"", b"x", b"confide-local-kek-v1 \n", "double", "no newline"])
def test_another_format_is_refused(path: Path, change: bytes | str) -> None:
    LocalProvider.create(path)
    good = path.read_bytes()
    path.write_bytes({"double": good * 2, "no newline": good[:-1]}[change] if isinstance(change, str) else change)
    with pytest.raises(KmsMisconfigured):
        LocalProvider.load(path)


def test_an_absent_file_is_a_denial(path: Path) -> None:
    with pytest.raises(KmsDenied):
        LocalProvider.load(path)


async def test_a_replaced_file_is_seen_at_the_next_unwrap(path: Path) -> None:
    provider = LocalProvider.create(path)
    wrapped = await provider.wrap(SecretKey.generate(), CONTEXT, uuid4())
    kept = path.rename(path.with_name("kept"))
    LocalProvider.create(path)
    with pytest.raises(KmsIntegrity):
        await provider.unwrap(wrapped.ciphertext, wrapped.kek_version, CONTEXT, uuid4())
    path.unlink()
    with pytest.raises(KmsDenied):
        await provider.describe(uuid4())
    kept.rename(path)
    await provider.unwrap(wrapped.ciphertext, wrapped.kek_version, CONTEXT, uuid4())


async def test_a_file_that_became_readable_to_others_is_no_longer_used(path: Path) -> None:
    provider = LocalProvider.create(path)
    path.chmod(0o644)
    with pytest.raises(KmsMisconfigured):
        await provider.wrap(SecretKey.generate(), CONTEXT, uuid4())


async def test_contexts_that_look_alike_are_not_alike(path: Path) -> None:
    provider = LocalProvider.create(path)
    wrapped = await provider.wrap(SecretKey.generate(), WrapContext({"a": "bc", "d": "e"}), uuid4())
    for other in ({"a": "b", "cd": "e"}, {"a": "bc"}, {"a": "bc", "d": "e", "f": "g"}, {"a": "bcd", "e": "e"}):
        with pytest.raises(KmsIntegrity):
            await provider.unwrap(wrapped.ciphertext, "1", WrapContext(other), uuid4())
    await provider.unwrap(wrapped.ciphertext, "1", WrapContext({"d": "e", "a": "bc"}), uuid4())


@pytest.mark.parametrize(
    "fields", [{}, {"": "x"}, {"A": "x"}, {"a": ""}, {"a": "x y"}, {"a": "é"}, {"a": "x\n"}, {"a": "x" * 257}]
)
def test_contexts_hold_short_plain_ids_only(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="context"):
        WrapContext(fields)


def test_too_many_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="context"):
        WrapContext({f"f{number}": "x" for number in range(17)})
