"""The part of AWS that the emulators don't play: who may do what. A proxy in front of ministack.

It knows the vendor's access key and the sessions that AssumeRole gave out; it reads roles' trust policies and keys'
policies back from ministack and evaluates them: Principal, Action, StringEquals on sts:ExternalId and
kms:EncryptionContext:*, and the session policy. What it lets through, ministack does.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from aiohttp import web

from tests.kms.servers import FaultProxy

VENDOR_KEY = "AKIAVENDORVENDOR0001"
_UNSIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/{}/{}/aws4_request, SignedHeaders=host, Signature=0"
_CREDENTIAL = re.compile(r"Credential=([^/]+)/")


class AwsGate(FaultProxy):
    """``calls`` are (action, user agent, access key) of what came in. ``expired`` are access keys that have ended.
    ``material``: by key ARN, the id of the key's current material, where it has been rotated.
    """

    def __init__(self, upstream: str, account: str, vendor_role: str) -> None:
        super().__init__(upstream)
        self._account = account
        self._principals: dict[str, str] = {VENDOR_KEY: vendor_role}
        self._session_policy: dict[str, dict[str, Any]] = {}
        self.expired: set[str] = set()
        self.material: dict[str, str] = {}
        self._made_with: dict[str, str] = {}
        self.seen: list[tuple[str, str, str]] = []

    def faultable(self, request: web.Request) -> bool:
        return "x-amz-target" in request.headers

    async def handle(self, request: web.Request, body: bytes) -> web.StreamResponse:
        access = _CREDENTIAL.search(request.headers.get("Authorization", ""))
        key = access[1] if access else ""
        target = request.headers.get("x-amz-target", "")
        action = target.partition(".")[2] if target else parse_qs(body.decode())["Action"][0]
        self.seen.append((action, request.headers.get("User-Agent", ""), key))
        refusal = await (self._kms(action, key, body) if target else self._sts(key, body))
        if refusal is not None:
            return self._refuse(*refusal, query=not target)
        status, content, headers = await self.forward(request, body)
        if action == "AssumeRole" and status == 200:
            self._remember(body, content.decode())
        if target and status == 200:
            content = self._with_material(action, json.loads(body), content)
        return web.Response(status=status, body=content, headers=headers)

    def _with_material(self, action: str, asked: dict[str, Any], content: bytes) -> bytes:
        """What AWS says of key material: DescribeKey names the current one, Decrypt the one that it used."""
        answer = json.loads(content)
        current = self.material.get(asked.get("KeyId", ""))
        if action == "Encrypt" and current is not None:
            self._made_with[answer["CiphertextBlob"]] = current
        elif action == "DescribeKey" and current is not None:
            answer["KeyMetadata"]["CurrentKeyMaterialId"] = current
        elif action == "Decrypt" and asked.get("CiphertextBlob") in self._made_with:
            answer["KeyMaterialId"] = self._made_with[asked["CiphertextBlob"]]
        return json.dumps(answer).encode()

    def made_with(self, ciphertext: bytes) -> str | None:
        return self._made_with.get(base64.b64encode(ciphertext).decode())

    def _refuse(self, status: int, code: str, message: str, *, query: bool) -> web.Response:
        headers = {"x-amzn-RequestId": "11111111-2222-3333-4444-555555555555"}
        if query:
            text = (
                f'<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
                f"<Code>{code}</Code><Message>{escape(message)}</Message></Error>"
                f"<RequestId>{headers['x-amzn-RequestId']}</RequestId></ErrorResponse>"
            )
            return web.Response(status=status, text=text, headers=headers, content_type="text/xml")
        return web.json_response({"__type": code, "message": message}, status=status, headers=headers)

    def _remember(self, body: bytes, answer: str) -> None:
        form = parse_qs(body.decode())
        found = re.search(r"<AccessKeyId>([^<]+)</AccessKeyId>", answer)
        assert found is not None
        self._principals[found[1]] = form["RoleArn"][0]
        self._session_policy[found[1]] = json.loads(form["Policy"][0])

    async def _sts(self, key: str, body: bytes) -> tuple[int, str, str] | None:
        if key not in self._principals:
            return 403, "InvalidClientTokenId", "The security token included in the request is invalid."
        if key in self.expired:
            return 403, "ExpiredToken", "The security token included in the request is expired"
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        role = form["RoleArn"]
        policy = await self._trust_policy(role.rpartition("/")[2])
        told = {"sts:ExternalId": form.get("ExternalId")}
        if policy is None or not _allows(policy, self._principals[key], "sts:AssumeRole", told, self._account):
            message = f"User: {self._principals[key]} is not authorized to perform: sts:AssumeRole on resource: {role}"
            return 403, "AccessDenied", message
        return None

    async def _kms(self, action: str, key: str, body: bytes) -> tuple[int, str, str] | None:
        if key not in self._principals:
            return 400, "UnrecognizedClientException", "The security token included in the request is invalid."
        if key in self.expired:
            return 400, "ExpiredTokenException", "The security token included in the request is expired"
        asked = json.loads(body)
        policy = await self._key_policy(asked["KeyId"])
        if policy is None:
            return 400, "NotFoundException", f"Key '{asked['KeyId']}' does not exist"
        told = {f"kms:EncryptionContext:{k}": v for k, v in (asked.get("EncryptionContext") or {}).items()}
        principal = self._principals[key]
        allowed = _allows(policy, principal, f"kms:{action}", told, self._account)
        limits = self._session_policy.get(key)
        if limits is not None:
            allowed = allowed and any(
                f"kms:{action}" in each["Action"] and each["Resource"] == asked["KeyId"] for each in limits["Statement"]
            )
        if not allowed:
            return 400, "AccessDeniedException", f"User: {principal} is not authorized to perform: kms:{action}"
        return None

    async def _key_policy(self, key_arn: str) -> dict[str, Any] | None:
        region = key_arn.split(":")[3]
        answer = await self._ask("TrentService.GetKeyPolicy", {"KeyId": key_arn, "PolicyName": "default"}, region)
        return json.loads(answer["Policy"]) if "Policy" in answer else None

    async def _ask(self, target: str, body: dict[str, str], region: str) -> dict[str, Any]:
        scope = _UNSIGNED.format(region, "kms")
        headers = {"X-Amz-Target": target, "Authorization": scope, "Content-Type": "application/x-amz-json-1.1"}
        async with self._web.post(f"{self._upstream}/", data=json.dumps(body), headers=headers) as answer:
            return dict(await answer.json(content_type=None))

    async def _trust_policy(self, role: str) -> dict[str, Any] | None:
        scope = _UNSIGNED.format("us-east-1", "iam")
        form = {"Action": "GetRole", "RoleName": role, "Version": "2010-05-08"}
        async with self._web.post(f"{self._upstream}/", data=form, headers={"Authorization": scope}) as answer:
            text = await answer.text()
        found = re.search(r"<AssumeRolePolicyDocument>(.*?)</AssumeRolePolicyDocument>", text, re.DOTALL)
        return json.loads(unquote(found[1]).replace("&quot;", '"')) if found else None


def _allows(policy: dict[str, Any], principal: str, action: str, told: dict[str, Any], account: str) -> bool:
    """Allow statements only. The account's root stands for its administrators, not for roles without permissions."""
    for statement in policy["Statement"]:
        named = statement["Principal"]["AWS"]
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        wanted = statement.get("Condition", {}).get("StringEquals", {})
        if (
            statement["Effect"] == "Allow"
            and principal in (named if isinstance(named, list) else [named])
            and any(each in {action, action.partition(":")[0] + ":*"} for each in actions)
            and all(told.get(name) == value for name, value in wanted.items())
        ):
            return True
    return False
