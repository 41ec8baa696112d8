"""Settings of key management services: the cell's own (vendor's) key, and what customers' bindings may reach."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from app.config.parsers import flag, number, one_of, path, setting, text, whole

if TYPE_CHECKING:
    from app.kms.binding import Binding
    from app.kms.registry import KmsSettings
    from app.kms.transit import TransitEndpoint

_WORD: Final = text(r"[!-~]{1,512}", "printable ASCII without spaces")
PROVIDERS: Final = ("local", "aws-kms", "azure-key-vault", "vault-transit")


class Endpoint(msgspec.Struct, forbid_unknown_fields=True):
    """A server in CONFIDE_TRANSIT_ENDPOINTS. It signs in with ``token``, or with ``role_id`` and ``secret_id``."""

    name: str
    url: str
    ca: str | None = None
    region: str | None = None
    namespace: str | None = None
    token: str | None = None
    role_id: str | None = None
    secret_id: str | None = None
    mount: str = "approle"


def _endpoints(value: str) -> tuple[Endpoint, ...]:
    try:
        found = msgspec.json.decode(value.encode(), type=tuple[Endpoint, ...])
    except (msgspec.MsgspecError, UnicodeError):
        found = ()
    signed_in = all(
        (each.role_id is None and each.secret_id is None)
        if each.token is not None
        else (each.role_id is not None and each.secret_id is not None)
        for each in found
    )
    if not found or not signed_in:
        raise ValueError(
            'must be a JSON list like [{"name": "eu", "url": "https://bao.example.com", "token": "…"}], each with'
            " token, or with role_id and secret_id"
        )
    return found


def _partitions(value: str) -> frozenset[str]:
    parts = frozenset(value.split(","))
    if not parts <= {"aws", "aws-us-gov", "aws-cn", "aws-eusc"}:
        raise ValueError("must be a list of aws, aws-us-gov, aws-cn, aws-eusc")
    return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsVariables:
    """As read from the environment; ``settings`` makes of it what the registry takes."""

    provider: str = setting("CONFIDE_KMS_PROVIDER", one_of(*PROVIDERS), "")
    vendor_key: str | None = setting("CONFIDE_VENDOR_KEY", _WORD, None)
    vendor_role: str | None = setting("CONFIDE_VENDOR_ROLE_ARN", _WORD, None)
    vendor_directory: str | None = setting("CONFIDE_VENDOR_ENTRA_TENANT", _WORD, None)
    local_key_dir: Path | None = setting("CONFIDE_LOCAL_KEY_DIR", path, None)  # noqa: RUF009  a field, in truth

    aws_role_arn: str | None = setting("CONFIDE_AWS_ROLE_ARN", _WORD, None)
    aws_access_key_id: str | None = setting("CONFIDE_AWS_ACCESS_KEY_ID", _WORD, None)
    aws_secret_access_key: str | None = setting("CONFIDE_AWS_SECRET_ACCESS_KEY", _WORD, None, secret=True)
    aws_partitions: frozenset[str] = setting("CONFIDE_AWS_PARTITIONS", _partitions, frozenset({"aws"}))
    aws_ambient: bool = setting("CONFIDE_AWS_AMBIENT", flag, default=False)
    aws_kms_endpoint: str | None = setting("CONFIDE_AWS_KMS_ENDPOINT", _WORD, None)
    aws_sts_endpoint: str | None = setting("CONFIDE_AWS_STS_ENDPOINT", _WORD, None)
    aws_ca_file: str | None = setting("CONFIDE_AWS_CA_FILE", _WORD, None)

    azure_client_id: str | None = setting("CONFIDE_AZURE_CLIENT_ID", _WORD, None)
    azure_client_secret: str | None = setting("CONFIDE_AZURE_CLIENT_SECRET", _WORD, None, secret=True)
    azure_authority: str = setting("CONFIDE_AZURE_AUTHORITY", _WORD, "login.microsoftonline.com")

    transit: tuple[Endpoint, ...] = setting("CONFIDE_TRANSIT_ENDPOINTS", _endpoints, (), secret=True)

    connect_seconds: float = setting("CONFIDE_KMS_CONNECT_SECONDS", number(0.01, 60), 1.0)
    read_seconds: float = setting("CONFIDE_KMS_READ_SECONDS", number(0.01, 60), 2.0)
    budget_seconds: float = setting("CONFIDE_KMS_BUDGET_SECONDS", number(0.01, 60), 3.0)
    attempts: int = setting("CONFIDE_KMS_ATTEMPTS", whole(1, 10), 3)
    concurrency: int = setting("CONFIDE_KMS_CONCURRENCY", whole(1, 1000), 32)
    breaker_failures: int = setting("CONFIDE_KMS_BREAKER_FAILURES", whole(1, 1000), 5)
    breaker_seconds: float = setting("CONFIDE_KMS_BREAKER_SECONDS", number(0.01, 600), 5.0)

    def contradictions(self, *, dev: bool) -> list[str]:
        """What can't be so together; empty where ``settings`` will succeed as far as it can be told here."""
        faults = []
        if self.provider not in {"", "local"} and self.vendor_key is None:
            faults.append("CONFIDE_VENDOR_KEY is not set: it names the cell's own key at CONFIDE_KMS_PROVIDER")
        if self.provider == "aws-kms" and self.aws_role_arn is None:
            faults.append("CONFIDE_AWS_ROLE_ARN is not set: it is the cell's own principal in AWS")
        if self.provider == "vault-transit" and not self.transit:
            faults.append("CONFIDE_TRANSIT_ENDPOINTS is not set: it lists the Transit servers")
        if self.provider == "azure-key-vault" and self.azure_client_id is None:
            faults.append("CONFIDE_AZURE_CLIENT_ID is not set: it is the cell's own application in Entra")
        if not dev and (self.aws_kms_endpoint or self.aws_sts_endpoint):
            faults.append("CONFIDE_AWS_KMS_ENDPOINT and CONFIDE_AWS_STS_ENDPOINT are for CONFIDE_ENV=dev only")
        return faults

    def settings(self, region: str, *, dev: bool) -> KmsSettings:
        """For ``ProviderRegistry``. Raises ValueError or InvalidRequest, whose texts hold no value."""
        from app.kms.aws_cell import AwsSettings  # noqa: PLC0415  cloud SDKs take a second to import
        from app.kms.azure_cell import AzureSettings  # noqa: PLC0415
        from app.kms.limits import Limits  # noqa: PLC0415
        from app.kms.registry import KmsSettings  # noqa: PLC0415

        limits = Limits(
            connect_timeout=self.connect_seconds,
            read_timeout=self.read_seconds,
            attempts=self.attempts,
            budget=self.budget_seconds,
            concurrency=self.concurrency,
            breaker_failures=self.breaker_failures,
            breaker_seconds=self.breaker_seconds,
        )
        aws = None
        if self.aws_role_arn is not None:
            aws = AwsSettings(
                self.aws_role_arn,
                self.aws_access_key_id,
                self.aws_secret_access_key,
                ambient=self.aws_ambient,
                partitions=self.aws_partitions,
                kms_endpoint=self.aws_kms_endpoint,
                sts_endpoint=self.aws_sts_endpoint,
                ca_file=self.aws_ca_file,
            )
        azure = None
        if self.azure_client_id is not None:
            azure = AzureSettings(self.azure_client_id, self.azure_client_secret, authority=self.azure_authority)
        return KmsSettings(
            region,
            self._vendor(),
            limits,
            dev=dev,
            local_folder=self.local_key_dir if dev else None,
            aws=aws,
            azure=azure,
            transit=tuple(_endpoint(each) for each in self.transit),
        )

    def _vendor(self) -> Binding:
        from app.kms.binding import AwsBinding, BindingRules, LocalBinding, validate_binding  # noqa: PLC0415

        key = self.vendor_key or ""
        if self.provider == "local":
            return LocalBinding(key or "vendor")
        if self.provider == "aws-kms":
            return AwsBinding(key, self.vendor_role, None)
        asked: dict[str, Any] = {"provider": self.provider}
        if self.provider == "vault-transit":
            endpoint, _, rest = key.partition("/")
            mount, _, name = rest.rpartition("/")
            asked |= {"endpoint": endpoint, "mount": mount, "key_name": name}
        else:
            asked |= {"key_url": key, "entra_tenant_id": self.vendor_directory}
        return validate_binding(asked, BindingRules(endpoints=frozenset(each.name for each in self.transit)))


def _endpoint(each: Endpoint) -> TransitEndpoint:
    from app.kms.transit import AppRoleAuth, TokenAuth, TransitEndpoint  # noqa: PLC0415

    auth: TokenAuth | AppRoleAuth
    if each.token is not None:
        auth = TokenAuth(each.token)
    else:
        auth = AppRoleAuth(each.role_id or "", each.secret_id or "", each.mount)
    return TransitEndpoint(each.name, each.url, each.ca, auth, each.region, each.namespace)
