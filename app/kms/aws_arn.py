"""Strict ARNs: a KMS key's and an IAM role's. No aliases, no wildcards, one spelling each.

Sources: the ARN formats in the "Actions, resources, and condition keys" pages of AWS KMS and IAM. A key id is a UUID
in lower case or ``mrk-`` and 32 hex digits (multi-Region keys).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from typing_extensions import override

from app.errors import InvalidRequest

PARTITION_SUFFIX = {"aws": "amazonaws.com", "aws-us-gov": "amazonaws.com", "aws-cn": "amazonaws.com.cn"}
MAX_ARN = 2048

_REGION = r"[a-z]{2}(?:-gov)?-(?:central|north|south|east|west|northeast|northwest|southeast|southwest)-[1-9]"
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_KEY = re.compile(rf"arn:(aws[a-z-]{{0,12}}):kms:({_REGION}):([0-9]{{12}}):key/({_UUID}|mrk-[0-9a-f]{{32}})", re.ASCII)
_ROLE = re.compile(
    r"arn:(aws[a-z-]{0,12}):iam::([0-9]{12}):role/((?:[A-Za-z0-9+=,.@_-]{1,64}/){0,8})([A-Za-z0-9+=,.@_-]{1,64})",
    re.ASCII,
)
_REGION_ONLY = re.compile(_REGION, re.ASCII)
_ALIAS = re.compile(r"(?:arn:[^:]{0,20}:kms:[^:]{0,40}:[^:]{0,20}:)?alias/", re.ASCII)


@dataclass(frozen=True, slots=True)
class KeyArn:
    partition: str
    region: str
    account: str
    key_id: str

    @override
    def __str__(self) -> str:
        return f"arn:{self.partition}:kms:{self.region}:{self.account}:key/{self.key_id}"


@dataclass(frozen=True, slots=True)
class RoleArn:
    partition: str
    account: str
    path: str
    role: str

    @override
    def __str__(self) -> str:
        return f"arn:{self.partition}:iam::{self.account}:role/{self.path}{self.role}"


def partition_of(region: str) -> str:
    """The partition that a region lies in, by its name."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def is_region(text: str) -> bool:
    return _REGION_ONLY.fullmatch(text) is not None


def parse_key_arn(text: object, partitions: Collection[str] = ("aws",), pointer: str = "/key_arn") -> KeyArn:
    """Raises ``InvalidRequest`` with the pointer and a text that says what to give instead."""
    if not isinstance(text, str) or len(text) > MAX_ARN:
        raise InvalidRequest("Give the key's ARN as a string: arn:aws:kms:<region>:<account>:key/<key id>.", pointer)
    if _ALIAS.match(text):
        raise InvalidRequest(
            "An alias isn't accepted, because its owner can point it at another key. Give the key's own ARN: "
            "arn:aws:kms:<region>:<account>:key/<key id>.",
            pointer,
        )
    match = _KEY.fullmatch(text)
    if match is None:
        raise InvalidRequest(
            "This isn't the ARN of a KMS key. Copy it from the key's page in the AWS console: "
            "arn:aws:kms:<region>:<12-digit account>:key/<key id in lower case>.",
            pointer,
        )
    arn = KeyArn(*match.groups())
    _check_partition(arn.partition, partitions, pointer)
    if partition_of(arn.region) != arn.partition:
        raise InvalidRequest(
            "The ARN's region doesn't lie in the ARN's partition. Copy the ARN as AWS shows it.", pointer
        )
    return arn


def parse_role_arn(text: object, partitions: Collection[str] = ("aws",), pointer: str = "/role_arn") -> RoleArn:
    """Raises ``InvalidRequest`` with the pointer and a text that says what to give instead."""
    if not isinstance(text, str) or len(text) > MAX_ARN:
        raise InvalidRequest("Give the role's ARN as a string: arn:aws:iam::<account>:role/<name>.", pointer)
    match = _ROLE.fullmatch(text)
    if match is None:
        raise InvalidRequest(
            "This isn't the ARN of an IAM role. Copy it from the role's page in the AWS console: "
            "arn:aws:iam::<12-digit account>:role/<name>.",
            pointer,
        )
    arn = RoleArn(*match.groups())
    _check_partition(arn.partition, partitions, pointer)
    return arn


def _check_partition(partition: str, partitions: Collection[str], pointer: str) -> None:
    if partition not in partitions or partition not in PARTITION_SUFFIX:
        raise InvalidRequest("This cell doesn't serve the AWS partition of this ARN.", pointer)
