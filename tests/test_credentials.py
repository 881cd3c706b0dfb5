"""Secrets: refused where a run is configured, masked in what is said and noted, never written."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.cli import main
from rlhf_core.config import read_rewards, resolve
from rlhf_core.credentials import is_secret, masked, refuse
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec, RewardSpec
from rlhf_core.method import read_kwargs
from rlhf_core.ui.text import protect_output

ROWS = [{"prompt": f"q{i}", "completion": "a"} for i in range(6)]
VALUES = {"method": "grpo", "reward": ["r.py:noisy"], "num_generations": 2, "max_completion_length": 4, "max_steps": 2}
SECRETS = [
    "api_key",
    "apiKey",
    "API-KEY",
    "x-api-key",
    "OPENAI_API_KEY",
    "hub_token",
    "hubToken",
    "HF_TOKEN",
    "hf.token",
    "push_to_hub_token",
    "token",
    "auth",
    "password",
    "db_password",
    "passwd",
    "secret",
    "client_secret",
    "aws_secret_access_key",
    "aws_access_key_id",
    "credentials",
    "pwd",
    "jwt",
    "Authorization",
    "access_token",
    "judge_api_key",
    "api_key_2",
    "passphrase",
    "private_key",
]
NONE = [
    "eos_token",
    "pad_token",
    "max_tokens",
    "tokenizer",
    "num_tokens",
    "think_token",
    "image_token_id",
    "control_tokens",
    "key",
    "keywords",
    "author",
    "pass_at_k",
    "min_tokens",
    "stop_token",
    "target",
    "token_type",
    "authority",
    "token_level",
    "api_key_file",
    "api_base",
    "compass",
    "password_env",
]


def test_names_of_secrets_in_any_spelling():
    assert [name for name in SECRETS if not is_secret(name)] == []
    assert [name for name in NONE if is_secret(name)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("git clone https://user:tok123@github.com/x", "git clone https://***@github.com/x"),
        ("https://tok123@github.com and ftp://u:p@h", "https://***@github.com and ftp://***@h"),
        ("GET https://h/x?a=1&token=abc&b=2#f", "GET https://h/x?a=1&token=***&b=2#f"),
        ("s3://b/k?X-Amz-Signature=abc", "s3://b/k?X-Amz-Signature=***"),
        ("rlhf run --reward f:api_key=abc,max=3", "rlhf run --reward f:api_key=***,max=3"),
        ("f:a=1,password='x y',b=2", "f:a=1,password='***',b=2"),
        ("--reward f:api_key=abc --reward g:token=d end", "--reward f:api_key=*** --reward g:token=*** end"),
        ("Authorization: Basic dXNlcjpwYXNz\nHost: h", "Authorization: ***\nHost: h"),
        ('{"api_key": "abc", "eos_token": "</s>"}', '{"api_key": "***", "eos_token": "</s>"}'),
        ("hf_abcdefghijklmnopqrst sk-proj-abc123def456ghi789", "*** ***"),
        ("key is of-the-environment-1, base http://localhost:8000/v1", "key is ***, base http://localhost:8000/v1"),
        *[(text, text) for text in (
            "unexpected token: x", "git+ssh://git@github.com/a/b", "https://h/p@q", "me@x.com", "--set eos_token=x",
            "sk-learn-is-a-nice-library-name", "key=3, max_tokens=5", "postgres.jsonl", "Bearer of bad news", "monkey=1",
            'token: "x"', '"token": x',
        )],
    ],
)  # fmt: skip
def test_secrets_are_masked_and_other_text_stays(text, expected, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "of-the-environment-1")
    monkeypatch.setenv("DB_PASSWORD", "postgres")  # a word
    monkeypatch.setenv("DEPLOY_KEY", "/home/me/key-of-2026")  # a path
    assert masked(text) == expected
    assert masked(expected) == expected


# (variable, what it holds) -> whether that is masked
HELD = {
    ("JUDGE_API_KEY", "abcdefg1"): True,
    ("JUDGE_API_KEY", "abcdefgh"): False,  # a word
    ("JUDGE_API_KEY", "abcdefghijkl"): True,
    ("JUDGE_API_KEY", "abcdef1"): False,  # short
    ("JUDGE_API_KEY", "/keys/of-2026"): False,  # a path
    ("MYTOKEN", "abcdefg1"): True,
    ("Deploy_Key", "abcdefg1"): True,
    ("JUDGE_HOST", "abcdefg1"): False,
}


@pytest.mark.parametrize(("name", "value"), HELD)
def test_what_secrets_of_the_environment_hold_is_masked(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTHER_API_KEY", f"x{value}-and-longer-1")  # the longer one first
    assert masked(f"of x{value}-and-longer-1.") == "of ***."
    assert masked(f"of {value}.") == ("of ***." if HELD[name, value] else f"of {value}.")


def test_a_secret_that_holds_another_is_masked_whole(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "zbcdefghijkl1")
    monkeypatch.setenv("B_TOKEN", "abczbcdefghijkl1")
    assert masked("got abczbcdefghijkl1") == "got ***"


def test_a_refused_secret_says_why():
    with pytest.raises(
        UserError, match="--x: what a run is made of is written down, so it takes no secrets, and api_key"
    ):
        refuse({"api_key": "abc"}, "--x")


def test_masking_takes_linear_time():
    for part in ("key", "token=", "://", "?a=", "'", "sk-", "-----BEGIN PRIVATE KEY-----", "a:", "x.y-", "bearer "):
        masked("https://" + part * (20_000 // len(part)))  # quadratic ones would take minutes


GIVEN = [
    lambda: RewardSpec.read("r.py:f:api_key=abc123"),
    lambda: RewardSpec.read({"r.py:f": {"max": 3, "judge": {"Authorization": "abc123"}}}),
    lambda: RewardSpec.read("r.py:f:url=https://user:abc123@h/x"),
    lambda: RewardSpec.read("r.py:f:x=hf_abc123abc123abc123"),
    lambda: DataSpec.read("d.jsonl:token=abc123"),
    lambda: DataSpec.read("https://user:abc123@h/d.jsonl"),
    lambda: DataSpec.read("https://h/d.jsonl?token=abc123"),
    lambda: read_rewards([{"f": {"PASSWORD": "abc123"}}]),
    lambda: read_kwargs('{"access_token": "abc123"}'),
    lambda: resolve({**VALUES, "set": {"hub_token": "abc123"}}, Catalog()),
    lambda: resolve({**VALUES, "set": {"lr_scheduler_kwargs": {"apiKey": "abc123"}}}, Catalog()),
    lambda: resolve({**VALUES, "hub_token": "abc123"}, Catalog()),
    lambda: resolve({**VALUES, "model": "https://user:abc123@h/m"}, Catalog()),
    lambda: resolve(VALUES, Catalog(), under=[{"reward": [{"f": {"secret": "abc123"}}]}]),
]


@pytest.mark.parametrize("number", range(len(GIVEN)))
def test_a_configuration_takes_no_secrets(number):
    with pytest.raises(UserError) as refused:
        GIVEN[number]()
    assert "environment variable" in str(refused.value)
    assert "abc123" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "variable"), [("apiKey", "API_KEY"), ("my-api.key", "MY_API_KEY"), ("token", "TOKEN")]
)
def test_a_refused_secret_comes_with_a_variable_for_it(name, variable):
    with pytest.raises(UserError, match=rf'os.environ\["{variable}"\]'):
        refuse({"a": [{name: "x"}]}, "--reward f")


def test_what_is_no_secret_is_taken():
    refuse({"max_tokens": 5, "eos_token": "<|end|>", "token": 3, "api_key": None, "api_key_file": "k.txt"}, "--set")
    assert RewardSpec.read("f:key=answer,stop_token=</s>,url=http://localhost:8000/v1").parameters["key"] == "answer"
    assert resolve({**VALUES, "system_prompt": "Write to https://me@h or to token=1"}, Catalog())


NOISY = """
import logging, os, warnings

def noisy(completions, **_):
    key = os.environ["JUDGE_API_KEY"]
    logging.getLogger("httpx").warning("GET https://u:%s@h/x?token=%s", "of-a-url-1", key)
    logging.getLogger("rlhf").warning(f"judge said no to {key}")
    warnings.warn(f"Authorization: Bearer {key}")
    raise ValueError(f"401 for https://judge/v1?api_key={key} with {{'api_key': 'of-a-dict-1'}}")
"""


def test_nothing_that_a_run_writes_or_says_holds_a_secret(go, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JUDGE_API_KEY", "of-the-environment-1")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:of-a-proxy-1@proxy:3128")
    monkeypatch.setattr(sys, "argv", ["rlhf", "run", "--reward", "f:api_key=of-an-argument-1"])
    (tmp_path / "r.py").write_text(NOISY)
    protect_output()
    code, folder = go()
    assert code == 0
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    secret = re.compile(rb"of-(the-environment|a-url|a-proxy|an-argument|a-dict)-1")
    assert [path for path, content in written.items() if secret.search(content)] == []
    said = capsys.readouterr()
    assert not secret.search((said.out + said.err).encode())
    assert "judge said no to ***" in said.out
    assert "401 for https://judge/v1?api_key=***" in (folder / "reward_errors.jsonl").read_text()
    assert "--reward f:api_key=***" in json.loads((folder / "manifest.json").read_text())["command"]
    assert b"https://***@h/x?token=***" in written[folder / "run.log"]
    assert [path for path in written if path.name == "training_args.bin"] == []
    if os.name == "posix":
        private = [folder / "config.yaml", folder / "manifest.json"]
        assert [path.stat().st_mode & 0o077 for path in private] == [0, 0]


@pytest.mark.parametrize("arguments", [["run", "token=abc123"], ["chat", "https://user:abc123@h/m"]])
def test_errors_repeat_no_secret(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rlhf", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "abc123" not in said
    assert "***" in said
    assert not list(Path().glob("runs/*abc123*"))
