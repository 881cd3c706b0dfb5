"""Text of models, files, plugins and arguments reaches a terminal, a pipe, a page and the log with its control
characters shown, whichever command prints it: checked by the bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import sys
import threading
import unicodedata
from pathlib import Path

import pytest

import rlhf_core
from rlhf_core.cli import main
from rlhf_core.cli.chat import _writer
from rlhf_core.ui.page import document
from rlhf_core.ui.text import Output, protect_output, shown, to_json

# title, clipboard, link, clear, C1, delete, bell, backspaces, return, overrides, isolates, zero width, markup
HOSTILE = (
    "\x1b]0;t\x07\x1b]52;c;QQ==\x07\x1b]8;;http://e.x\x1b\\k\x1b[2J\x9b31m\x9d0;c\x9c\x7f\x08\rr\x85\u202ev\u202c"
    "\u2066i\u2069z\u200bw\u200dj\ufeff\u2028\U000e0041[bold red]m[/] :smile:<script>x</script>"
)
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[\d*[AK]|\r(?=\n|\x1b)")  # colours and the live view's cursor
PLAIN = {
    "\x1b]0;t\x07": "␛]0;t␇",
    "\x9b31m\x85\xad": "\\x9b31m\\x85\\xad",
    "a\u202eb\u2066c": "a\\u202eb\\u2066c",
    "a\rb\x08\x7f": "a␍b␈␡",
    "a\r\nb\tc\n": "a\nb\tc\n",
    "a\u200db\u200bc\ufe0f": "a\\u200db\\u200bc\\ufe0f",
    "中\ufe0f\u200d\u200d": "中\ufe0f\u200d\\u200d",
    "\ud800x\U000e0041": "\\ud800x\\U000e0041",
    "\u2028\u2060\u3164": "\\u2028\\u2060\\u3164",
}
ORDINARY = [
    "肺炎，发热三天。\n\t“好” — ① ５ﾃﾞ　",
    "👩‍👩‍👧 ❤️‍🔥 🏳️‍🌈 1️⃣ ©️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 👍🏽",
    "می‌خواهم التهاب رئوي؟ שלום\u200f!",
    "हिन्दी क्‍ष  naïve, Ω ≤ 10 µg [bold]not markup[/bold] :smile: \\x1b",
]


def acting(text: str) -> set[str]:
    """The control and format characters in what was printed, but our own."""
    found = {c for c in OURS.sub("", text) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    return {f"U+{ord(c):04X}" for c in found - {"\n", "\t"}}


def test_control_characters_are_shown_and_ordinary_text_stays():
    assert {text: shown(text) for text in PLAIN} == PLAIN
    assert [shown(text) for text in ORDINARY] == ORDINARY
    every = "".join(
        map(chr, [*range(0x3000), *range(0xD800, 0xE000), *range(0xFE00, 0x11000), *range(0xE0000, 0xE1000)])
    )
    assert shown(shown(every)) == shown(every)
    assert not acting(" ".join(shown(c) for c in every if c not in "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2"))  # fmt: skip
    assert shown(HOSTILE * 2) == shown(HOSTILE) * 2


def test_hidden_characters_are_shown_by_their_number():
    assert shown("\x85\u202e\U000e0001") == r"\x85\u202e\U000e0001"
    assert shown("\x07\x7f\r\n\r") == "␇␡\n␍"


def test_json_reads_back_as_the_same_text():
    value = {HOSTILE: [HOSTILE, "\ud800", *ORDINARY]}
    assert json.loads(to_json(value)) == value
    assert to_json(["中", "é"]) == '["中", "é"]'
    assert not acting(to_json(value, indent=1))
    assert to_json({"a": Path("b")}, indent=1) == '{\n "a": "b"\n}'


def test_messages_hide_secrets_and_results_do_not(monkeypatch):
    for messages, expected in ((True, "token=***"), (False, "token=abc")):
        assert Output(stream := io.StringIO(), messages=messages).write("token=abc") == len("token=abc")
        assert stream.getvalue() == expected


@pytest.mark.parametrize(
    ("encoding", "printed"), [("ascii", "诊é".encode()), ("latin-1", b"\\u8bca\xe9"), ("utf-8", "诊é".encode())]
)
def test_what_an_encoding_lacks_is_shown_by_its_number(monkeypatch, encoding, printed):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written := io.BytesIO(), encoding=encoding))
    monkeypatch.setattr(sys, "stderr", None)
    protect_output()
    print("诊é", end="", flush=True)
    assert written.getvalue() == printed


@pytest.fixture(params=["pipe", "terminal"])
def printed(request, monkeypatch):
    """printed(*arguments) -> (exit code, all that `rlhf ARGUMENTS` wrote to a pipe, or to a terminal)."""

    def call(*arguments: str) -> tuple[int, str]:
        read, write = os.openpty() if request.param == "terminal" else os.pipe()
        parts: list[bytes] = []
        reader = threading.Thread(target=_read_all, args=(read, parts))
        reader.start()
        with open(write, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["rlhf", *arguments])
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            patch.setenv("TERM", "xterm-256color")
            with pytest.raises(SystemExit) as ended:
                main()
            sys.stdout.flush()
            sys.stderr.flush()
        reader.join()
        os.close(read)
        return ended.value.code or 0, b"".join(parts).decode("utf-8", "surrogateescape")

    return call


def _read_all(file: int, parts: list[bytes]) -> None:
    try:
        while part := os.read(file, 1 << 16):
            parts.append(part)
    except OSError:  # the terminal was closed
        pass


REWARDS = f"""
import logging, sys, warnings
HOSTILE = {HOSTILE!r}

def talks(completions, **_):
    print(HOSTILE)
    sys.stderr.write(HOSTILE + "\\n")
    warnings.warn(HOSTILE)
    logging.getLogger("rlhf").warning(HOSTILE)
    return [float(len(text)) for text in completions]

def fails(completions, **_):
    raise ValueError(HOSTILE)
"""
COMMAND = f"""
import click
from rlhf_core import hookimpl

@click.command("{{name}}", help={HOSTILE!r})
def command():
    print({HOSTILE!r})
    click.echo({HOSTILE!r})
    raise RuntimeError({HOSTILE!r})

@hookimpl
def rlhf_commands():
    return [command]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, distribution):
    """The current folder, with hostile data, rewards and plugins in it."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i} {HOSTILE}", "completion": f"{i} {HOSTILE}", f"c{HOSTILE}": HOSTILE} for i in range(4)]
    Path("d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("other.jsonl").write_text(json.dumps({f"c{HOSTILE}": 1}))
    Path("r.py").write_text(REWARDS)
    Path("c.yaml").write_text(json.dumps({"method": HOSTILE}))
    modules = {"hostile_command": COMMAND.format(name="hostile"), "hostile_reward": f"raise ValueError({HOSTILE!r})"}
    points = {"rlhf.commands": {"hostile": "hostile_command"}, "rlhf.rewards": {"raises": "hostile_reward"}}
    distribution("hostile", modules, {**points, "rlhf.methods": {"h\x1b]0;\x9b\u202e": "gone"}})
    metadata = tmp_path / "site" / "hostile-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("an example", HOSTILE.replace("\r", "").replace("\x85", "")))
    return tmp_path


# argument lists, with what is expected in the output
COMMANDS: dict[str, tuple[list[str], int, str]] = {
    "help": (["--help"], 0, "␛]0;t"),
    "listing": (["plugins"], 0, "h␛]0;\\x9b\\u202e"),
    "listing as json": (["plugins", "--json"], 0, r"\u001b]0;t\u0007"),
    "plugin that raises": (["rewards", "show", "raises"], 2, "␛]52"),
    "plugin's command": (["hostile"], 1, "RuntimeError: ␛]0;t"),
    "plugin's help": (["hostile", "--help"], 0, "␛]8;;"),
    "usage": (["run", f"--{HOSTILE}"], 2, "0;t"),
    "no such command": ([HOSTILE], 2, "0;t"),
    "no such method": (["run", "--method", HOSTILE], 2, "[bold red]m[/] :smile:"),
    "no such model": (["chat", HOSTILE], 2, "␛]0;t"),
    "configuration": (["run", "--config", "c.yaml"], 2, "[bold red]m"),
    "columns": (["score", "other.jsonl", "--reward", "length"], 2, "c␛]0;t"),
    "scores": (["score", "d.jsonl", "--reward", "r.py:talks", "--html", "page.html"], 0, "␛]52;c;QQ==␇"),
    "failures": (["score", "d.jsonl", "--reward", "r.py:fails", "--reward", "length"], 0, "ValueError: ␛]0;t␇"),
    "failures as json": (
        ["score", "d.jsonl", "--reward", "r.py:fails", "--reward", "length", "--json"],
        0,
        r"ValueError: \u001b]0;t\u0007",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_no_command_prints_control_characters_of_others(case, folder, printed):
    arguments, code, part = COMMANDS[case]
    ended, text = printed(*arguments)
    assert ended == code, text
    assert not acting(text)
    assert part in text
    for page in folder.glob("*.html"):
        check_page(page.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_no_run_prints_control_characters_of_others(folder, printed, tiny_model):
    values = {"--model": tiny_model, "--max-steps": 1, "--max-completion-length": 4, "--num-generations": 2}
    values |= {"--per-device-train-batch-size": 2, "--gradient-accumulation-steps": 1, "--num-eval-prompts": 1}
    flags = [str(word) for pair in values.items() for word in pair]
    rewards = ["--reward", "r.py:talks", "--reward", "r.py:fails"]
    ended, text = printed("run", "--method", "grpo", "--data", "d.jsonl", *rewards, *flags, "--output-dir", "out")
    assert ended == 0, text
    assert not acting(text)
    assert "Warning: ␛]0;t␇" in text  # of the reward
    assert "ValueError: ␛]0;t␇" in text
    log = Path("out/run.log").read_text(encoding="utf-8")
    assert "␛]0;t␇" in log
    assert not acting(log)


def check_page(html: str) -> None:
    """A page holds nothing that acts, and what it says of itself lets nothing run or load but its own style."""
    assert not acting(html)
    assert "<script" not in html
    assert not re.search(r'<[^>]* (style|on\w+)="', html)
    assert "content=\"default-src 'none'; style-src 'sha256-" in html
    digest = hashlib.sha256(html.partition("<style>")[2].partition("</style>")[0].encode()).digest()
    assert base64.b64encode(digest).decode() in html


def test_pages_show_control_characters_and_run_nothing():
    check_page(document(HOSTILE, []))
    with pytest.raises(AssertionError):
        check_page("<p style='x'>" + HOSTILE)


@pytest.mark.parametrize("terminal", [False, True])
def test_what_joins_two_emoji_may_come_in_a_piece_of_its_own(terminal, capsys):
    write = _writer(terminal)
    for piece in ("👩", "\u200d", "👩 ❤", "\ufe0f", "\u200d", "🔥 a", "\u200d", "b\r", "\n\x1b", "]0;t"):
        write(piece)
    assert capsys.readouterr().out == "👩\u200d👩 ❤\ufe0f\u200d🔥 a\\u200db␍\n␛]0;t"


def test_no_command_colours_text_by_itself():
    """What is printed is shown, escapes of click's colours too: `Terminal` has colours."""
    for path in Path(str(rlhf_core.__file__)).parent.rglob("*.py"):
        assert not re.search(r"click\.(style|secho)\(", path.read_text(encoding="utf-8")), path
