from __future__ import annotations

import json
import logging
import pickle
import traceback
from pathlib import Path

import pytest

from devices.errors import ConfigError
from devices.secrets import Secret, read_secret

PASSWORD = "hunter2-ünïcode"


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret(PASSWORD)
    shown = [
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret!s:>40}",
        str([secret]),
        str({"p": secret}),
    ]
    assert all("hunter2" not in text for text in shown)
    for write in (pickle.dumps, json.dumps):
        with pytest.raises(TypeError):
            write(secret)
    assert secret.reveal() == PASSWORD


def test_secrets_of_one_text_are_equal() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"


def test_a_secret_is_read_from_a_file_without_its_line_end(password_file: Path) -> None:
    assert read_secret(file=str(password_file)) == Secret(PASSWORD)
    password_file.write_bytes(b" two words \r\n")
    assert read_secret(file=str(password_file)) == Secret(" two words ")


def test_a_secret_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPLINK_PASSWORD", PASSWORD)
    assert read_secret(env="UPLINK_PASSWORD") == Secret(PASSWORD)


def test_without_file_and_variable_there_is_no_secret() -> None:
    assert read_secret() is None


def test_both_a_file_and_a_variable_are_refused(password_file: Path) -> None:
    with pytest.raises(ConfigError, match="both token_file and token_env are set"):
        read_secret(file=str(password_file), env="TOKEN", key="token")


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_PASSWORD that password_env names is empty or not set"):
        read_secret(env="NO_SUCH_PASSWORD")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"s3cr3t\nline two\n", "no line of UTF-8"),
        (b"s3cr3t\xff", "no line of UTF-8"),
        (b"s3cr3t" * 20_000, "no line of UTF-8"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused_and_not_shown(
    password_file: Path, content: bytes, complaint: str
) -> None:
    password_file.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_secret(file=str(password_file))
    assert str(password_file) in str(caught.value)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*/gone that password_file names: No such file"):
        read_secret(file=str(tmp_path / "gone"))


def test_a_folder_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_secret(file=str(tmp_path))


def test_a_file_that_everybody_may_write_is_refused(password_file: Path) -> None:
    password_file.chmod(0o602)
    with pytest.raises(ConfigError, match=r"everybody may write .* chmod 600"):
        read_secret(file=str(password_file))


def test_a_file_that_everybody_may_read_is_used_with_a_warning(
    password_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    password_file.chmod(0o444)
    with caplog.at_level(logging.WARNING):
        assert read_secret(file=str(password_file)) == Secret(PASSWORD)
    assert "chmod 600" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_file_of_ones_own_gives_no_warning(password_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    password_file.chmod(0o640)
    read_secret(file=str(password_file))
    assert caplog.text == ""
