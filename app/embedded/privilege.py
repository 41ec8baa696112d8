"""Running as root: PostgreSQL refuses that, so the supervisor becomes somebody else before it starts one.

No account is made and no folder is opened to others. The account is the one that owns the state directory (or the
checkout), else ``nobody``. When that account may not enter the folders above, as in a checkout under a home directory
with mode 0700, it keeps exactly one capability that root has: to pass closed folders. On Linux an *ambient* capability
survives the change of user and exec (capabilities(7)).
"""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
from pathlib import Path

from app.embedded.cluster import Binaries, EmbeddedPostgresError
from app.embedded.processes import LINUX

PR_SET_SECUREBITS = 28
# A change of user leaves the capabilities alone (we drop them ourselves), and access(2), by which initdb looks for its
# companions, counts them for others than root too.
SECBIT_NO_SETUID_FIXUP = 1 << 2
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1  # read, write and execute whatever the mode says
CAP_DAC_READ_SEARCH = 2  # read whatever the mode says: enough when the programs may be executed by all

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def leave_root(state: Path, binaries: Binaries) -> None:
    """Make the state directory usable, and give up root for good. Does nothing when not root."""
    if os.geteuid() != 0:
        _check_owner(state)
        return
    account = choose_account(state)
    os.chown(state, account.pw_uid, account.pw_gid)
    capability = capability_needed(state, binaries, account)
    if capability is not None and not LINUX:
        raise EmbeddedPostgresError(_advice(state, account))
    if capability is not None and _libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) != 0:
        raise EmbeddedPostgresError(_advice(state, account))
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    if capability is not None:
        _keep(capability, _advice(state, account))
    os.environ["HOME"] = str(state)


def choose_account(state: Path) -> pwd.struct_passwd:
    """The account that owns the state directory or the nearest folder above it, unless that is root; else nobody.

    initdb looks its own user up, so an id without an account won't do.
    """
    for folder in (state, state.parent, state.parent.parent):
        owner = folder.stat().st_uid
        if owner != 0:
            try:
                return pwd.getpwuid(owner)
            except KeyError:
                break
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedPostgresError(
            "PostgreSQL doesn't run as root, and this system has no account `nobody` to run it as: start Confide as an "
            "ordinary user, or point CONFIDE_DATABASE_URL at a PostgreSQL 15 or newer."
        ) from None


def capability_needed(state: Path, binaries: Binaries, account: pwd.struct_passwd) -> int | None:
    """The least capability with which the account can reach the programs and the state directory."""
    if not _allows(binaries.postgres, account, execute=True):
        return CAP_DAC_OVERRIDE
    folders = [*state.parents, *binaries.postgres.parents]
    libraries = binaries.postgres.parent.parent / "lib"
    readable = _allows(binaries.postgres, account) and all(_allows(file, account) for file in libraries.glob("*.so"))
    entered = all(_allows(folder, account, execute=True) for folder in folders)
    return None if readable and entered else CAP_DAC_READ_SEARCH


def _allows(path: Path, account: pwd.struct_passwd, *, execute: bool = False) -> bool:
    """Whether the mode lets the account read the file, or execute it or enter the folder."""
    status = path.stat()
    bits = (stat.S_IXUSR, stat.S_IXGRP, stat.S_IXOTH) if execute else (stat.S_IRUSR, stat.S_IRGRP, stat.S_IROTH)
    if status.st_uid == account.pw_uid:
        return bool(status.st_mode & bits[0])
    if status.st_gid == account.pw_gid:
        return bool(status.st_mode & bits[1])
    return bool(status.st_mode & bits[2])


def _keep(capability: int, advice: str) -> None:
    """After the change of user: put the one capability into every set, so that exec passes it on."""
    header = _Header(CAPABILITY_VERSION_3, 0)
    for candidate in dict.fromkeys((capability, CAP_DAC_OVERRIDE)):  # containers often have only the second
        sets = (_Sets * 2)(_Sets(*[1 << candidate] * 3), _Sets(0, 0, 0))
        taken = _libc.capset(ctypes.byref(header), sets) == 0
        if taken and _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, candidate, 0, 0) == 0:
            return
    raise EmbeddedPostgresError(advice)


def _advice(state: Path, account: pwd.struct_passwd) -> str:
    return (
        f"PostgreSQL doesn't run as root, and the account `{account.pw_name}` may not enter the folders above {state}, "
        "nor does this system let it keep the right to: start Confide as an ordinary user, move the checkout to a "
        "folder that others may enter, or point CONFIDE_DATABASE_URL at a PostgreSQL 15 or newer."
    )


def _check_owner(state: Path) -> None:
    owner = state.stat().st_uid
    if owner != os.geteuid():
        raise EmbeddedPostgresError(
            f"{state} belongs to another user (id {owner}); was it made as root? Start Confide as that user or root, "
            "or remove the folder to begin anew (its data is lost)."
        )
