"""EC2: credentials, profiles and settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cloudtask.errors import ProviderRefusedError, UsageError
from cloudtask.kinds import Scene as Place
from cloudtask.options import help_text, parse
from cloudtask.providers import settings_table
from cloudtask.providers.ec2 import Ec2Provider
from cloudtask.providers.ec2_settings import ROWS
from tests.providers.contract import settings_with
from tests.providers.ec2_scene import Ec2Scene
from tests.stage.ec2_server import Ec2Server


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Scene]:
    """Answers only: no machine is behind them."""
    with Ec2Server() as server:
        yield Ec2Scene(server, monkeypatch)


# --- credentials and settings


def test_without_credentials(scene: Ec2Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for ask in (lambda: scene.make().offer(), lambda: scene.make().find(), lambda: scene.make().launch(scene.order())):
        with pytest.raises(ProviderRefusedError, match="no credentials: set AWS_ACCESS_KEY_ID"):
            ask()


def test_a_profile(scene: Ec2Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "config").write_text("[profile work]\naws_access_key_id = AKIAWORKWORKWORKWORK\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    scene.make(ec2_profile="work").find()
    assert scene.server.calls[-1].access_key == "AKIAWORKWORKWORKWORK"
    with pytest.raises(UsageError, match="nobody"):
        scene.make(ec2_profile="nobody")


def test_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UsageError, match="boto3 is not installed: pip install"):
        Ec2Provider(settings_with())


def test_boto3_is_loaded_only_where_it_is_used() -> None:
    code = "import sys, cloudtask.providers.ec2, cloudtask.providers.ec2_settings; sys.exit('boto3' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("ec2_spot", "yes", True),
        ("ec2_spot", True, True),
        ("ec2_spot", "no", False),
        ("ec2_spot", False, False),
        ("ec2_spot", "0.05", 0.05),
        ("ec2_spot", "1", 1.0),
        ("ec2_spot", 1, 1.0),
        ("ec2_subnet", "subnet-0123456789abcdef0", "subnet-0123456789abcdef0"),
        ("ec2_subnet", "", None),
        ("ec2_security_group", ("a b", "sg-1", "a b", ""), ("a b", "sg-1")),
        ("ec2_security_group", "one", ("one",)),
        ("ec2_profile", "work", "work"),
    ],
)
def test_settings(name: str, raw: object, value: object) -> None:
    row = {row.name: row for row in ROWS}[name]
    parsed = row.parse(raw, Place(folder="/", environ={}))
    assert (parsed, type(parsed)) == (value, type(value))
    assert parsed is None or row.parse(row.write(parsed), Place(folder="/", environ={})) in (value, None)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("ec2_spot", "cheap"),
        ("ec2_spot", "0"),
        ("ec2_spot", "-1"),
        ("ec2_subnet", "vpc-1"),
        ("ec2_security_group", 5),
        ("ec2_security_group", ["a\n"]),
    ],
)
def test_settings_that_are_none(name: str, raw: object) -> None:
    with pytest.raises(ValueError):
        {row.name: row for row in ROWS}[name].parse(raw, Place(folder="/", environ={}))


def test_the_spot_option_stands_with_and_without_a_price() -> None:
    table = settings_table()
    assert parse(["--ec2-spot", "echo"], table).values == {"ec2_spot": True}
    assert parse(["--ec2-spot=0.05", "echo"], table).values == {"ec2_spot": "0.05"}
    assert "--ec2-spot[=MAXPRICE]" in help_text(table, "cloudtask", "Jobs.")
