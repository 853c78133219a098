"""Prices: the table that comes along, and the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudtask.errors import UsageError
from cloudtask.providers.price_table import EC2
from cloudtask.providers.prices import DATE, price, read_prices


# As Amazon's price list has them.
@pytest.mark.parametrize(
    ("region", "size", "dollars"),
    [
        ("us-east-1", "t3.nano", 0.0052),
        ("us-east-1", "t3.small", 0.0208),
        ("us-east-1", "t3.2xlarge", 0.3328),
        ("us-east-1", "t2.small", 0.023),
        ("us-east-1", "t4g.micro", 0.0084),
        ("us-east-1", "m5.large", 0.096),
        ("us-east-1", "m5.24xlarge", 4.608),
        ("us-east-1", "m6g.medium", 0.0385),
        ("us-east-1", "m7i.48xlarge", 9.6768),
        ("us-east-1", "c5.18xlarge", 3.06),
        ("us-east-1", "r6i.32xlarge", 8.064),
        ("us-east-1", "g4dn.xlarge", 0.526),
        ("us-west-2", "c6i.large", 0.085),
        ("eu-west-1", "t3.small", 0.0228),
        ("eu-central-1", "m5.large", 0.115),
    ],
)
def test_published_prices(region: str, size: str, dollars: float) -> None:
    assert price("ec2", region, size) == pytest.approx(dollars, abs=1e-9)


@pytest.mark.parametrize("words", [("ec2", "us-east-1", "no.such"), ("ec2", "mars-1", "t3.small"), ("linode", "", "g6-nanode-1")])
def test_what_is_in_no_table_has_no_price(words: tuple[str, str, str]) -> None:
    assert price(*words) is None


def test_the_table_is_sane() -> None:
    assert len(DATE) == 7
    assert all(0.004 <= cost < 20 and "." in size for sizes in EC2.values() for size, cost in sizes.items())
    assert len(EC2["us-east-1"]) > 250


def test_the_users_file_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text('ec2: {us-east-1: {t3.small: 0.01}, "*": {my.size: 2}}\nlinode: {"": {g6-nanode-1: 0.0075}}\n')
    own = read_prices(str(file))
    assert price("ec2", "us-east-1", "t3.small", own) == 0.01
    assert price("ec2", "us-east-1", "t3.large", own) == pytest.approx(0.0832)
    assert price("ec2", "mars-1", "my.size", own) == 2
    assert price("linode", "eu-west", "g6-nanode-1", own) == 0.0075
    assert price("ec2", "mars-1", "t3.small", own) is None


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read_prices(None) == read_prices(str(tmp_path / "empty")) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ec2: 5", "ec2 must be a table"),
        ("[1, 2]", "the file must be a table"),
        ("ec2: {us-east-1: {t3.small: cheap}}", "t3.small: 'cheap' is no price"),
        ("ec2: {us-east-1: {t3.small: -1}}", "-1 is no price"),
        ("ec2: {us-east-1: {t3.small: .nan}}", "nan is no price"),
        ("ec2: {us-east-1: {t3.small: yes}}", "True is no price"),
        ("ec2: {1: {t3.small: 1}}", "ec2 must be a table"),
        ("ec2: {us-east-1: [t3.small]}", "ec2, 'us-east-1' must be a table"),
        ("ec2: {", "not YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_prices(str(file))
    assert said in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    for name, said in (("none", "No such file"), ("binary", "not text")):
        with pytest.raises(UsageError, match=said):
            read_prices(str(tmp_path / name))
