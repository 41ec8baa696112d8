"""Settings: one table, strict values, no unsafe start outside development, and no secret in any text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app import config
from app.config import ConfigError, all_fields, load
from tests.control import support

ROOT = Path(__file__).parents[2]
PASSWORD = "hunter2-planted"
SAFE = support.SAFE | {"CONFIDE_DATABASE_URL": f"postgresql://confide_app:{PASSWORD}@db:5432/confide"}
SECRET = SAFE["CONFIDE_CELL_SECRET"]


def test_the_table_lists_every_setting_and_no_other() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    rows = {match[1]: match[2] for match in re.finditer(r"^\| `(CONFIDE_[A-Z_]+)` \|(.*)$", page, re.MULTILINE)}
    settings = {item.metadata["env"]: item for item in all_fields()}
    assert set(rows) == set(settings)
    for env, item in settings.items():
        assert ("*Secret.*" in rows[env]) == item.metadata["secret"], env
        if isinstance(item.default, int | float) and not isinstance(item.default, bool):
            assert f"`{item.default:g}`" in rows[env] or f"`{item.default}`" in rows[env], env
    for env in config.CLIENT_VARIABLES:
        assert f"`{env}`" in page


def test_development_needs_nothing_but_its_name() -> None:
    settings = load({"CONFIDE_ENV": "dev"})
    assert (settings.region, settings.kms.provider, settings.host) == ("local", "local", "127.0.0.1")


def test_a_safe_production_starts() -> None:
    settings = load(SAFE)
    assert settings.kms.settings(settings.region, dev=False).vendor.provider == "vault-transit"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONFIDE_REGION", ""),
        ("CONFIDE_DATABASE_URL", ""),
        ("CONFIDE_CELL_SECRET", ""),
        ("CONFIDE_AUDIT_SIGNING_KEY", ""),
        ("CONFIDE_CELL_SECRET", "00" * 32),
        ("CONFIDE_CELL_SECRET", "0123456789abcdef" * 4),
        ("CONFIDE_KMS_PROVIDER", ""),
        ("CONFIDE_KMS_PROVIDER", "local"),
        ("CONFIDE_VENDOR_KEY", ""),
        ("CONFIDE_TRANSIT_ENDPOINTS", ""),
        ("CONFIDE_AWS_KMS_ENDPOINT", "http://127.0.0.1:4566"),
        ("CONFIDE_AWS_STS_ENDPOINT", "http://127.0.0.1:4566"),
    ],
)
def test_what_is_unsafe_refuses_to_start_outside_development(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(SAFE | {name: value})
    assert name.removesuffix("_FILE") in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONFIDE_ENV", "Live"),
        ("CONFIDE_ENV", "x"),
        ("CONFIDE_REGION", "EU"),
        ("CONFIDE_REGION", "eu central"),
        ("CONFIDE_PORT", "http"),
        ("CONFIDE_PORT", "65536"),
        ("CONFIDE_PORT", "-1"),
        ("CONFIDE_PORT", "8080\n"),
        ("CONFIDE_PORT", "٨٠"),
        ("CONFIDE_WORKERS", "0"),
        ("CONFIDE_WORKERS", "1e2"),
        ("CONFIDE_HOST", "a b"),
        ("CONFIDE_CELLS", "eu"),
        ("CONFIDE_CELLS", "eu=ftp://x"),
        ("CONFIDE_CELLS", "EU=https://x"),
        ("CONFIDE_DATABASE_URL", "mysql://planted-value@x/y"),
        ("CONFIDE_CELL_SECRET", "planted-value"),
        ("CONFIDE_CELL_SECRET", "ab" * 31),
        ("CONFIDE_LOG_LEVEL", "LOUD"),
        ("CONFIDE_LOG_SHARE", "1.5"),
        ("CONFIDE_LOG_SHARE", "nan"),
        ("CONFIDE_LANE_RECONNECT_SECONDS", "inf"),
        ("CONFIDE_MAX_OBJECT_BYTES", "1"),
        ("CONFIDE_KMS_PROVIDER", "planted-value"),
        ("CONFIDE_AWS_AMBIENT", "yes"),
        ("CONFIDE_TRANSIT_ENDPOINTS", '[{"name":"planted-value"}]'),
        ("CONFIDE_TRANSIT_ENDPOINTS", "planted-value"),
        ("CONFIDE_TRANSIT_ENDPOINTS", '[{"name":"a","url":"https://b","token":"planted-value","role_id":"c"}]'),
        ("CONFIDE_CELL_SECRET_FILE", "/nowhere/planted-value"),
        ("CONFIDE_PORT_FILE", "/dev/null"),
        ("CONFIDE_DATABSE_URL", "planted-value"),
        ("CONFIDE_", "planted-value"),
        ("CONFIDE_env", "dev"),
    ],
)
def test_a_value_that_cant_be_is_named_and_never_shown(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load({"CONFIDE_ENV": "dev"} | {name: value})
    text = str(refusal.value)
    assert name in text
    assert "planted-value" not in text


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as refusal:
        load({"CONFIDE_ENV": "dev", "CONFIDE_PORT": "x", "CONFIDE_WORKERS": "x", "CONFIDE_NONSENSE": "x"})
    assert len(str(refusal.value).splitlines()) == 3


def test_a_secret_may_stand_in_a_file_but_not_in_both_places(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    own = {"CONFIDE_ENV": "dev", "CONFIDE_CELL_SECRET_FILE": str(path)}
    assert load(own).cell_secret == bytes.fromhex(SECRET)
    assert load(own | {"CONFIDE_CELL_SECRET": ""}).cell_secret == bytes.fromhex(SECRET), "an empty one is none"
    with pytest.raises(ConfigError, match="both set"):
        load({"CONFIDE_ENV": "dev", "CONFIDE_CELL_SECRET_FILE": str(path), "CONFIDE_CELL_SECRET": SECRET})


def test_no_secret_is_in_the_settings_text() -> None:
    settings = load(SAFE)
    for text in (repr(settings), str(settings), f"{settings}", repr(settings.kms)):
        assert PASSWORD not in text
        assert "planted-token" not in text
        assert SECRET not in text
        assert repr(bytes.fromhex(SECRET))[2:-1] not in text


def test_whoever_sourced_demo_env_may_serve() -> None:
    load({"CONFIDE_ENV": "dev", "PATH": "/bin"} | dict.fromkeys(config.CLIENT_VARIABLES, "x"))


def test_settings_cant_be_changed() -> None:
    with pytest.raises(AttributeError):
        load({"CONFIDE_ENV": "dev"}).port = 1  # type: ignore[misc]
