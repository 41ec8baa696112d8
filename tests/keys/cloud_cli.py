"""``aws``, ``az`` and ``terraform`` for the guides' commands, where the real ones aren't at hand.

Each is a small script on PATH that hands its arguments to the test, which looks the command up in a table below and
does at the emulator what the command does at the cloud. A command that isn't in a table fails, so that a page can't
name one that nobody has tried. Options are taken as the page gives them; one that the table's function doesn't read
fails as well.
"""

from __future__ import annotations

import json
import re
import string
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typing_extensions import override

from tests.keys.customers import World
from tests.kms.fake_azure import Application, Vault
from tests.kms.rigs_azure import OUR_SECRET

MODULE = Path(__file__).parents[2] / "docs" / "terraform" / "aws"
_SCRIPT = """#!{python}
import json, os, sys, urllib.request
told = json.dumps({{"tool": "{tool}", "argv": sys.argv[1:], "folder": os.getcwd()}}).encode()
answer = json.load(urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open("{url}", told))
sys.stdout.write(answer["out"])
sys.stderr.write(answer["error"])
sys.exit(answer["code"])
"""


class Options:
    """``--name value ...`` as given. ``unread`` names what nobody asked for."""

    def __init__(self, argv: list[str], folder: Path) -> None:
        self._folder = folder
        self._given: dict[str, list[str]] = {}
        self._read: set[str] = set()
        name = ""
        for word in argv:
            if word.startswith("-"):
                name = {"-o": "output", "-n": "name"}.get(word, word.lstrip("-"))
                self._given[name] = []
            else:
                self._given[name].append(word)

    def get(self, name: str) -> str | None:
        self._read.add(name)
        values = self._given.get(name)
        if values is None:
            return None
        value = " ".join(values)
        return (self._folder / value.removeprefix("file://")).read_text() if value.startswith("file://") else value

    def __getitem__(self, name: str) -> str:
        found = self.get(name)
        if found is None:
            raise LookupError(f"--{name} is missing")
        return found

    def unread(self) -> set[str]:
        return set(self._given) - self._read - {"output"}


def shown(answer: Any, query: str | None) -> str:
    """``--query a.b --output text``: the commands of the pages ask for one plain value."""
    for name in query.split(".") if query else ():
        answer = answer[name]
    return f"{answer}\n" if query else json.dumps(answer, default=str) + "\n"


class Clouds:
    """The tables, for one world. ``vault`` is the Azure vault that the reader has already."""

    def __init__(self, world: World, vault: Vault | None = None) -> None:
        self.world = world
        self.vault = vault
        self.ran: list[str] = []
        self.refused: list[str] = []
        self.tables: dict[str, dict[str, Callable[[Options], str]]] = {
            "aws": {
                "kms create-key": self._create_key,
                "kms put-key-policy": self._put_key_policy,
                "kms disable-key": lambda given: self._switch_key(given, "disable_key"),
                "kms enable-key": lambda given: self._switch_key(given, "enable_key"),
                "sts get-caller-identity": self._identity,
                "iam create-role": self._create_role,
                "iam update-assume-role-policy": self._trust,
            },
            "az": {
                "login": self._login,
                "account show": self._account,
                "keyvault key create": self._az_create_key,
                "keyvault key set-attributes": self._set_attributes,
                "keyvault show": self._show_vault,
                "ad sp create": self._admit,
                "role assignment create": self._grant,
            },
            "terraform": {"apply": self._apply},
        }

    def run(self, tool: str, argv: list[str], folder: Path) -> tuple[int, str, str]:
        """(exit code, output, error)."""
        words = []
        for word in argv:
            if word.startswith("-"):
                break
            words.append(word)
        command = " ".join(words)
        found = self.tables[tool].get(command)
        if found is None:
            self.refused.append(f"{tool} {command}")
            return 2, "", f"{tool} {command}: not in the table of tests/keys/cloud_cli.py\n"
        given = Options(argv[len(words) :], folder)
        try:
            out = found(given)
        except Exception as error:  # noqa: BLE001  whatever it is, the command has failed
            return 1, "", f"{tool} {command}: {type(error).__name__}: {error}\n"
        if given.unread():
            self.refused.append(f"{tool} {command} {sorted(given.unread())}")
            return 2, "", f"{tool} {command}: options that nobody reads: {sorted(given.unread())}\n"
        self.ran.append(f"{tool} {command}")
        return 0, out, ""

    # ------------------------------------------------------------ aws: ministack has the same API

    def _kms(self, given: Options) -> Any:
        given.get("region")
        return self.world.aws.client("kms")

    def _create_key(self, given: Options) -> str:
        made = self._kms(given).create_key(Description=given["description"])
        self.key = made["KeyMetadata"]["KeyId"]
        return shown(made, given.get("query"))

    def _put_key_policy(self, given: Options) -> str:
        name = given["policy-name"]
        self._kms(given).put_key_policy(KeyId=given["key-id"], PolicyName=name, Policy=given["policy"])
        return ""

    def _switch_key(self, given: Options, operation: str) -> str:
        getattr(self._kms(given), operation)(KeyId=given["key-id"])
        return ""

    def _identity(self, given: Options) -> str:
        return shown({"Account": self.world.aws.account}, given.get("query"))

    def _create_role(self, given: Options) -> str:
        policy = given["assume-role-policy-document"]
        made = self.world.aws.client("iam").create_role(RoleName=given["role-name"], AssumeRolePolicyDocument=policy)
        return shown(made["Role"]["Arn"], None)

    def _trust(self, given: Options) -> str:
        policy = given["policy-document"]
        self.world.aws.client("iam").update_assume_role_policy(RoleName=given["role-name"], PolicyDocument=policy)
        return ""

    # ------------------------------------------------------------ terraform: the module's own templates

    def _apply(self, given: Options) -> str:
        given.get("auto-approve")
        values = json.loads((given._folder / "terraform.tfvars.json").read_text())
        declared = set(re.findall(r'^variable "([a-z_]+)"', (MODULE / "variables.tf").read_text(), re.MULTILINE))
        if set(values) != declared:
            raise LookupError(f"the module declares {sorted(declared)}")
        account, role = self.world.aws.account, values["role_name"]
        known = values | {
            "partition": "aws",
            "key_account": account,
            "role_arn": f"arn:aws:iam::{account}:role/{role}",
        }
        trust, policy = (
            string.Template((MODULE / f"{name}.json.tftpl").read_text()).substitute(known)
            for name in ("trust-policy", "key-policy")
        )
        self.world.aws.client("iam").update_assume_role_policy(RoleName=role, PolicyDocument=trust)
        self.world.aws.client("kms").put_key_policy(KeyId=self.key, PolicyName="default", Policy=policy)
        return "Apply complete!\n"

    # ------------------------------------------------------------ az: the fake's state

    def _own(self, name: str) -> Vault:
        if self.vault is None or name != self.vault.name:
            raise LookupError("there is no such vault")
        return self.vault

    def _login(self, given: Options) -> str:
        if self.vault is None or given["tenant"] != self.vault.entra:
            raise LookupError("this isn't the vault's directory")
        return "[]\n"

    def _account(self, given: Options) -> str:
        return shown({"tenantId": self.vault.entra if self.vault else ""}, given.get("query"))

    def _az_create_key(self, given: Options) -> str:
        wanted = (given["kty"], int(given["size"]) >= 2048, set(given["ops"].split()))
        if wanted != ("RSA", True, {"wrapKey", "unwrapKey"}):
            raise ValueError("the fake makes RSA keys that wrap")
        self.world.azure.new_version(self._own(given["vault-name"]), given["name"])
        return "{}\n"

    def _set_attributes(self, given: Options) -> str:
        url = given.get("id")
        vault, name = (
            re.fullmatch(r"https://([a-z0-9-]+)\.vault\.azure\.net/keys/([a-z0-9-]+)", url).groups()  # type: ignore[union-attr]
            if url is not None
            else (given["vault-name"], given["name"])
        )
        key = self._own(str(vault)).keys[str(name)]
        tags, enabled = given.get("tags"), given.get("enabled")
        key.tags.update(tag.split("=", 1) for tag in tags.split()) if tags is not None else None
        for version in key.versions if enabled is not None else ():
            version.enabled = enabled == "true"
        return "{}\n"

    def _show_vault(self, given: Options) -> str:
        name = self._own(given["name"]).name
        place = f"/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/{name}"
        return shown({"id": place}, given.get("query"))

    def _admit(self, given: Options) -> str:
        entra = self.vault.entra if self.vault is not None else ""
        self.world.azure.directories.setdefault(entra, {})[given["id"]] = Application(OUR_SECRET)
        return "{}\n"

    def _grant(self, given: Options) -> str:
        scope = re.fullmatch(r"/subscriptions/.*/vaults/([a-z0-9-]+)/keys/([a-z0-9-]+)", given["scope"])
        if scope is None or given["role"] != "Key Vault Crypto Service Encryption User":
            raise ValueError("this role on this scope doesn't let anybody wrap with one key")
        vault = self._own(scope[1])
        if scope[2] not in vault.keys:
            raise LookupError("there is no such key")
        vault.granted.add(given["assignee"])
        return "{}\n"


@contextmanager
def on_path(clouds: Clouds, folder: Path) -> Iterator[Path]:
    """A folder for PATH that holds the tools."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code, out, error = clouds.run(told["tool"], told["argv"], Path(told["folder"]))
            body = json.dumps({"code": code, "out": out, "error": error}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        @override
        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        folder.mkdir()
        for tool in clouds.tables:
            script = folder / tool
            url = f"http://127.0.0.1:{server.server_port}/"
            script.write_text(_SCRIPT.format(python=sys.executable, tool=tool, url=url))
            script.chmod(0o755)
        yield folder
    finally:
        server.shutdown()
        server.server_close()
