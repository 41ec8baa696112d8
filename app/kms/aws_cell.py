"""AWS on the wire, shared by all keys of a cell: clients, a bounded thread pool, assumed sessions.

One botocore client per service and region serves every tenant. Each call brings its own credentials and its intent
id, held in a thread-local for as long as the call runs; without them nothing is sent. So a thousand tenants cost one
client, and there is no place where one tenant's session could be left behind for another.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import boto3
import botocore.session
from botocore import exceptions as boto_errors
from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config
from botocore.credentials import CredentialProvider, CredentialResolver, Credentials, ReadOnlyCredentials
from typing_extensions import override

from app.kms.aws_arn import PARTITION_SUFFIX, KeyArn, RoleArn
from app.kms.classify import aws_error
from app.kms.limits import Gate, Limits, Trace
from app.kms.provider import KmsError, KmsMisconfigured, KmsOwnCredentials, KmsUnavailable, KmsUnclassified

# At DEBUG these log request and response bodies, where a half of a root key stands in base64.
_TALKATIVE = (
    "botocore.endpoint",
    "botocore.parsers",
    "botocore.auth",
    "botocore.hooks",
    "botocore.client",
    "botocore.regions",
    "botocore.httpsession",
    "urllib3.connectionpool",
    "urllib3.util.retry",
)
_REFRESH_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """``role_arn`` is our own principal, which customers name in their policies. Explicit keys are for development;
    with ``ambient`` the vendor's own platform supplies them. ``kms_endpoint`` and ``sts_endpoint`` are for emulators
    only. ``session_seconds`` is how long a customer's assumed session lives (AWS allows 900 s at the least)."""

    role_arn: str
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    ambient: bool = False
    partitions: frozenset[str] = frozenset({"aws"})
    kms_endpoint: str | None = None
    sts_endpoint: str | None = None
    ca_file: str | None = None
    session_seconds: int = 900
    pool_size: int = 16


class _Quiet(logging.Filter):
    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG


_QUIET = _Quiet()


class _CallCredentials(Credentials):
    """Credentials that exist only while a call runs, and only for the thread that runs it."""

    def __init__(self, current: threading.local) -> None:
        super().__init__("per-call", "per-call")
        self._current = current

    @override
    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        frozen: ReadOnlyCredentials | None = getattr(self._current, "credentials", None)
        if frozen is None:
            raise boto_errors.NoCredentialsError
        return frozen


class _CallProvider(CredentialProvider):
    METHOD = "confide-per-call"

    def __init__(self, credentials: Credentials) -> None:
        super().__init__()
        self._credentials = credentials

    @override
    def load(self) -> Credentials:
        return self._credentials


@dataclass(frozen=True, slots=True)
class _Assumed:
    credentials: ReadOnlyCredentials = field(repr=False)
    expires_at: float


class AwsCell:
    """``request`` makes one call in the pool. ``gate(region)`` is the breaker and budget of that region's KMS."""

    def __init__(self, settings: AwsSettings, limits: Limits) -> None:
        self.settings = settings
        self._limits = limits
        self._current = threading.local()
        self._pool = ThreadPoolExecutor(settings.pool_size, thread_name_prefix="kms-aws")
        self._slots = asyncio.Semaphore(settings.pool_size)
        self._session = self._boto_session()
        self._making = threading.Lock()
        self._clients: dict[tuple[str, str], Any] = {}
        self._gates: dict[str, Gate] = {}
        self._assumed: dict[tuple[str, str, str], asyncio.Task[_Assumed]] = {}
        self._ambient: Credentials | None = None
        for name in _TALKATIVE:
            logger = logging.getLogger(name)
            if _QUIET not in logger.filters:
                logger.addFilter(_QUIET)

    def _boto_session(self) -> boto3.Session:
        core = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
        # Neither files nor the environment may choose endpoints, regions or credentials for a customer's call.
        core.set_config_variable("config_file", os.devnull)
        core.set_config_variable("credentials_file", os.devnull)
        resolver = CredentialResolver([_CallProvider(_CallCredentials(self._current))])
        core.register_component("credential_provider", resolver)
        return boto3.Session(botocore_session=core)

    def gate(self, region: str) -> Gate:
        return self._gates.setdefault(region, Gate(self._limits))

    def _endpoint(self, service: str, region: str, partition: str) -> str:
        given = self.settings.kms_endpoint if service == "kms" else self.settings.sts_endpoint
        return given or f"https://{service}.{region}.{PARTITION_SUFFIX[partition]}"

    def _client(self, service: str, region: str, partition: str) -> Any:
        with self._making:
            client = self._clients.get((service, region))
            if client is None:
                options: dict[str, Any] = {"ignore_configured_endpoint_urls": True}  # absent from the published types
                config = Config(
                    **options,
                    connect_timeout=self._limits.connect_timeout,
                    read_timeout=self._limits.read_timeout,
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    proxies={},  # an empty mapping, unlike None, keeps HTTPS_PROXY of the environment out
                    max_pool_connections=self.settings.pool_size,
                    user_agent_extra="confide",
                )
                factory: Callable[..., Any] = self._session.client
                client = factory(
                    service,
                    region_name=region,
                    endpoint_url=self._endpoint(service, region, partition),
                    verify=self.settings.ca_file or True,
                    config=config,
                )
                client.meta.events.register(f"before-send.{service}", self._send_intent)
                self._clients[service, region] = client
            return client

    async def ready(self, arn: KeyArn, services: tuple[str, ...]) -> None:
        """Make the clients before a call's time starts to run: the first of each kind takes tenths of a second."""

        def make() -> None:
            for service in services:
                self._client(service, arn.region, arn.partition)

        if any((service, arn.region) not in self._clients for service in services):
            try:
                await self._in_pool(make)
            except boto_errors.BotoCoreError as error:
                raise boto_failure(error) from None

    def _send_intent(self, request: AWSPreparedRequest, **_: Any) -> None:
        """CloudTrail keeps the user agent: the intent id travels there. The header isn't signed. Not ``before-sign``,
        since botocore writes the user agent anew after signing."""
        agent: Any = request.headers.get("User-Agent", "confide")
        agent = agent.decode("ascii", "replace") if isinstance(agent, bytes) else agent
        request.headers["User-Agent"] = f"{agent} confide-intent/{self._current.intent}"

    async def request(
        self,
        action: tuple[str, str],
        arn: KeyArn,
        params: Mapping[str, Any],
        *,
        credentials: ReadOnlyCredentials,
        intent: UUID,
        trace: Trace,
    ) -> dict[str, Any]:
        """One attempt at ``action``, a service and its operation. Raises ``KmsError``; puts the request id into
        ``trace``, also when AWS refuses."""

        service, operation = action

        def invoke() -> dict[str, Any]:
            self._current.credentials = credentials
            self._current.intent = intent
            try:
                method = getattr(self._client(service, arn.region, arn.partition), operation)
                answer: dict[str, Any] = method(**params)
                return answer
            finally:
                del self._current.credentials, self._current.intent

        try:
            answer: dict[str, Any] = await self._in_pool(invoke)
        except boto_errors.ClientError as error:
            meta: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
            trace.request_id = meta.get("RequestId") or trace.request_id
            told: Mapping[str, Any] = error.response.get("Error", {})
            raise aws_error(str(told.get("Code")), str(told.get("Message")), meta.get("HTTPStatusCode")) from None
        except boto_errors.BotoCoreError as error:
            raise boto_failure(error) from None
        trace.request_id = answer.get("ResponseMetadata", {}).get("RequestId")
        return answer

    async def _in_pool(self, work: Callable[[], Any]) -> Any:
        """Run in the pool. A slot is held until the thread is free again, also if nobody waits for it any longer."""
        await self._slots.acquire()
        loop = asyncio.get_running_loop()

        def release(_: Future[Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._slots.release)

        try:
            future = self._pool.submit(work)
        except RuntimeError:
            self._slots.release()
            raise KmsUnavailable("Closed", "the provider is shut down") from None
        future.add_done_callback(release)
        return await asyncio.wrap_future(future)

    # --- credentials ---

    async def own(self) -> ReadOnlyCredentials:
        """The vendor's own credentials. Raises ``KmsOwnCredentials`` where there are none."""
        mine = self.settings
        if mine.access_key_id and mine.secret_access_key:
            return ReadOnlyCredentials(mine.access_key_id, mine.secret_access_key, mine.session_token)
        if not mine.ambient:
            raise KmsOwnCredentials("NoCredentials", "this cell has no AWS credentials of its own")

        def load() -> ReadOnlyCredentials | None:
            if self._ambient is None:
                self._ambient = botocore.session.Session().get_credentials()
            return self._ambient.get_frozen_credentials() if self._ambient else None

        try:
            frozen: ReadOnlyCredentials | None = await self._in_pool(load)
        except boto_errors.BotoCoreError as error:
            raise KmsOwnCredentials(type(error).__name__) from None
        if frozen is None:
            raise KmsOwnCredentials("NoCredentials", "the platform gives this cell no AWS credentials")
        return frozen

    def forget_own(self) -> None:
        self._ambient = None

    async def assumed(
        self, role: RoleArn, external_id: str, key: KeyArn, intent: UUID, trace: Trace
    ) -> ReadOnlyCredentials:
        """The customer's session, shared until five minutes before it ends (or half its life) and fetched once, however
        many wait for it."""
        slot = (str(role), external_id, str(key))
        task = self._assumed.get(slot)
        if task is not None and task.done() and not self._fresh(task):
            task = None
        if task is None:
            task = asyncio.create_task(self.assume(role, external_id, key, intent, trace))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # read, so that none is "lost"
            self._assumed[slot] = task
        try:
            return (await asyncio.shield(task)).credentials
        except KmsError as error:
            raise error.copy() from None

    def _fresh(self, task: asyncio.Task[_Assumed]) -> bool:
        if task.cancelled() or task.exception() is not None:
            return False
        margin = min(_REFRESH_SECONDS, self.settings.session_seconds / 2)
        return task.result().expires_at - margin > time.time()

    def forget(self, role: RoleArn, external_id: str, key: KeyArn) -> None:
        self._assumed.pop((str(role), external_id, str(key)), None)

    async def assume(self, role: RoleArn, external_id: str | None, key: KeyArn, intent: UUID, trace: Trace) -> _Assumed:
        """A new session, good for this one key only, whatever else the customer's role may do."""
        allowed = {"Effect": "Allow", "Action": ["kms:Encrypt", "kms:Decrypt", "kms:DescribeKey"], "Resource": str(key)}
        params: dict[str, Any] = {
            "RoleArn": str(role),
            "RoleSessionName": f"confide-{intent}",
            "DurationSeconds": self.settings.session_seconds,
            "Policy": json.dumps({"Version": "2012-10-17", "Statement": [allowed]}, separators=(",", ":")),
        }
        if external_id is not None:
            params["ExternalId"] = external_id
        own = await self.own()
        answer = await self.request(("sts", "assume_role"), key, params, credentials=own, intent=intent, trace=trace)
        got = answer["Credentials"]
        expires: datetime = got["Expiration"]
        frozen = ReadOnlyCredentials(got["AccessKeyId"], got["SecretAccessKey"], got["SessionToken"])
        return _Assumed(frozen, expires.timestamp())

    async def close(self) -> None:
        """Drop the sessions and stop the threads; calls under way end within their read time-out."""
        for task in self._assumed.values():
            task.cancel()
        self._assumed.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def boto_failure(error: boto_errors.BotoCoreError) -> KmsError:
    """A failure that isn't an answer of AWS. Its text is left out: it may quote the request."""
    name = type(error).__name__
    if isinstance(error, boto_errors.SSLError):
        return KmsUnavailable("TlsFailure", alarm=True, endpoint_fault=True)
    if isinstance(error, boto_errors.NoCredentialsError | boto_errors.PartialCredentialsError):
        return KmsOwnCredentials(name)
    if isinstance(error, boto_errors.HTTPClientError | boto_errors.ConnectionError):
        return KmsUnavailable(name, endpoint_fault=True)
    if isinstance(error, boto_errors.ParamValidationError):
        return KmsMisconfigured(name)
    return KmsUnclassified(name)
