"""`rlhf recommend`: what the data has decides, every answer is a command that a dry run accepts, and bad data is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rlhf_tools import costs, looking, recommend
from rlhf_tools.choosing import choose
from rlhf_tools.looking import Findings, look

from rlhf_core import commands
from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.config import resolve
from rlhf_core.errors import UserError
from rlhf_core.training.run import train

ROWS = range(60)
DATA = {
    "pairs": [{"prompt": f"{i} + 2?", "chosen": f"It is {i + 2}", "rejected": f"No idea {i}."} for i in ROWS],
    "checkable": [{"question": f"What is {i} + 2?", "answer": str(i + 2)} for i in ROWS],
    "conversations": [
        {
            "messages": [
                {"role": "user", "content": f"Tell {i}"},
                {"role": "assistant", "content": f"A tale of {i} goats."},
            ]
        }
        for i in ROWS
    ],
    "prompts": [{"prompt": f"Tell me of the number {i}."} for i in ROWS],
}


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def looked(file: str) -> Findings:
    return look(commands.read_data_specs([file], None, None), Catalog())


def call(*words: str):
    done = CliRunner().invoke(rlhf, ["recommend", *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def unjudged(monkeypatch):
    """No reward is asked: that starts a process."""
    monkeypatch.setattr(looking, "_judges", lambda data, catalog: {})


@pytest.mark.parametrize("kind", ["pairs", "conversations", "prompts"])
def test_what_the_rows_have_is_found(tmp_path, unjudged, kind):
    found = looked(write(tmp_path / "data.jsonl", DATA[kind]))
    assert (found.kind, found.rows, found.different, found.problem) == (kind, 60, 60, "")
    assert found.learnable == (kind != "prompts")


def test_answers_that_the_verifier_finds_right_can_be_checked(tmp_path):
    found = looked(write(tmp_path / "data.jsonl", DATA["checkable"]))
    assert found.kind == "checkable"
    assert found.judges == {"verifier": 1.0}


PAIR = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{**PAIR, "prompt": f"{i}?", "rejected": "4"} for i in ROWS], "The two answers are the same in every pair"),
        ([PAIR] * 60, "1 different row among 60"),
        (DATA["pairs"][:9], "9 different rows: a model would learn them by heart"),
        ([{"question": f"{i}?", "answer": ""} for i in ROWS], "60 of 60 rows can't be used"),
        ([{"points": [i]} for i in ROWS], "no formatter fits"),
        ([{"a": f"good {i}", "b": f"bad {i}"} for i in ROWS], "perhaps:"),
    ],
)
def test_data_that_is_not_good_enough_is_said_with_exit_code_1(tmp_path, unjudged, rows, said):
    file = write(tmp_path / "data.jsonl", rows)
    done = call("--data", file, "--no-estimate")
    assert done.exit_code == 1
    assert said in done.output
    assert "Recommended" not in done.output
    shown = json.loads(call("--data", file, "--no-estimate", "--json").stdout)
    assert (shown["good_enough"], shown["recommended"]) == (False, None)
    assert said in shown["problem"]


def test_answers_that_are_all_the_same_teach_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "_judges", lambda data, catalog: {"verifier": 1.0})
    found = looked(write(tmp_path / "data.jsonl", [{"question": f"Is {i} good?", "answer": "yes"} for i in ROWS]))
    assert "Every answer is 'yes'" in found.problem


def test_pairs_that_length_decides_are_warned_of(tmp_path, unjudged):
    rows = [{**PAIR, "prompt": f"{i}?", "chosen": "four, of course"} for i in ROWS]
    assert any("the longer one in 100%" in text for text in looked(write(tmp_path / "a.jsonl", rows)).warnings)
    assert not any("longer" in text for text in looked(write(tmp_path / "b.jsonl", DATA["pairs"])).warnings)


VERIFIED = {"kind": "checkable", "learnable": True, "judges": {"verifier": 0.9}}


@pytest.mark.parametrize(
    ("found", "goal", "given", "first", "others"),
    [
        ({"kind": "pairs", "learnable": True}, "quality", {}, "dpo", ["orpo", "ppo"]),
        ({"kind": "pairs", "learnable": True}, "simplicity", {}, "dpo", ["orpo", "ppo"]),
        ({"kind": "pairs", "learnable": True}, "memory", {}, "orpo", ["dpo", "ppo"]),
        ({"kind": "pairs", "learnable": True}, "speed", {}, "orpo", ["dpo", "ppo"]),
        ({"kind": "pairs", "learnable": True}, "tradition", {}, "ppo", ["dpo", "orpo"]),
        ({"kind": "pairs", "learnable": True}, "quality", {"reward_model": "rm"}, "ppo", ["grpo", "dpo"]),
        ({"kind": "pairs", "learnable": True}, "speed", {"reward": "length"}, "grpo", ["ppo", "dpo"]),
        (VERIFIED, "quality", {}, "grpo", ["sft", "ppo"]),
        (VERIFIED, "speed", {}, "sft", ["grpo", "ppo"]),
        (VERIFIED, "memory", {}, "grpo", ["sft", "ppo"]),
        (VERIFIED, "tradition", {}, "ppo", ["grpo", "sft"]),
        ({**VERIFIED, "learnable": False}, "speed", {}, "grpo", ["ppo", "grpo"]),
        ({"kind": "conversations", "learnable": True}, "quality", {}, "sft", ["grpo", "ppo"]),
        ({"kind": "conversations", "learnable": True}, "quality", {"reward": "length"}, "grpo", ["sft", "ppo"]),
        ({"kind": "text", "learnable": True, "prompts": False}, "quality", {}, "sft", ["sft", "sft"]),
        ({"kind": "prompts"}, "quality", {}, "grpo", ["ppo", "grpo"]),
        ({"kind": "prompts"}, "memory", {"reward_model": "rm"}, "grpo", ["ppo", "grpo"]),
    ],
)
def test_the_table_of_the_guide(found, goal, given, first, others):
    best, *alternatives = choose(Findings(**found), goal, **given)
    assert (best.method, [one.method for one in alternatives]) == (first, others)
    assert all(one.why for one in (best, *alternatives))
    written = [tuple(one.command("m", ["d"])) for one in (best, *alternatives)]
    assert len(set(written)) == 3
    in_4_bits = [any("4bit" in word for word in command) for command in written]
    assert in_4_bits[0] == (goal == "memory")


def commands_of(kind: str) -> set[tuple[str, ...]]:
    """Every command that can be recommended for such data without an estimate, but for the model."""
    judges = {"checkable": [{"verifier": 1.0}], "conversations": [{}, {"medical_keyword": 1.0}]}
    found = [
        Findings(kind=kind, learnable=learnable, judges=its)
        for learnable in ([False] if kind == "prompts" else [True, False] if kind == "checkable" else [True])
        for its in judges.get(kind, [{}])
    ]
    return {
        tuple(one.command("builtin", ["DATA"]))
        for one_found in found
        for goal in recommend.GOALS
        for reward in (None, "length")
        for one in choose(one_found, goal, reward)
    }


ANSWERS = [(kind, command) for kind in DATA for command in sorted(commands_of(kind)) if command[1] == "run"]


def dry_run(command, catalog) -> int:
    flags = rlhf.get_command(None, "run").make_context("run", list(command[2:])).params
    given = {name: value for name, value in flags.items() if value not in (None, (), False) or name in ("lora",)}
    given = {name: value for name, value in given.items() if value is not None}
    config, method = resolve(given, catalog)
    return train(config, method, catalog, dry_run=True)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "command"), ANSWERS, ids=[" ".join(command[3:]) for _, command in ANSWERS])
def test_a_dry_run_accepts_every_answer(kind, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "data.jsonl", DATA[kind])
    assert dry_run([file if word == "DATA" else word for word in command], Catalog()) == 0
    assert "All checks passed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_accepts_the_classic_pipeline_in_4_bits(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    [best, *_] = choose(Findings(kind="pairs", learnable=True), "tradition")
    command = best.having({"load_in_4bit": True, "gradient_accumulation_steps": 2}).command("builtin", ["builtin"])
    assert command[1:3] == ["pipeline", "ppo"]
    done = CliRunner().invoke(rlhf, [*command[1:], "--dry-run"])
    assert done.exit_code == 0, done.output
    assert capfd.readouterr().out.count("4-bit") >= 2  # of the stages that can be checked before the first is trained


def test_the_command_is_whole_and_shell_quoted(tmp_path, unjudged):
    file = write(tmp_path / "my pairs.jsonl", DATA["pairs"])
    done = call("--data", f"{file}:weight=2", "--model", "Qwen/Qwen3-8B", "--no-estimate", "--goal", "memory")
    assert done.exit_code == 0, done.output
    assert f"rlhf run --method orpo --model Qwen/Qwen3-8B --data '{file}:weight=2' --load-in-4bit\n" in done.output


@pytest.mark.slow
def test_costs_are_estimated_and_options_added_until_it_fits(tmp_path, unjudged):
    file = write(tmp_path / "data.jsonl", DATA["pairs"])
    done = call("--data", file, "--gpu", "rtx3090", "--memory", "880MB", "--json")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["device"] == {"name": "RTX 3090", "memory_bytes": 880_000_000}
    best, orpo, ppo = shown["recommended"], *shown["alternatives"]
    assert [one["method"] for one in (best, orpo, ppo)] == ["dpo", "orpo", "ppo"]
    for one in (best, orpo, ppo):
        assert one["cost"]["fits"]
        assert 800_000_000 < one["cost"]["memory"] <= 880_000_000
        assert one["cost"]["steps"] > 0
        assert one["cost"]["seconds"] > 0
    assert "--per-device-train-batch-size" not in best["command"]
    assert "per_device_train_batch_size" in ppo["command"][-1]
    assert dry_run(best["command"], Catalog()) == 0


def test_a_reward_model_stands_beside_the_trained_one(monkeypatch):
    """In 16 bits its 8 billion parameters take 16 GB: nothing has to be measured to know that 12 GB are too few."""
    of = costs.Costs("m", ["d"], commands.device_of("rtx3060", None), Catalog())
    of.parameters = 8_000_000_000
    [classic, *_] = choose(Findings(kind="pairs", learnable=True), "tradition")
    assert of.of(classic) == costs.Cost(16_000_000_000, fits=False)


def test_what_a_run_would_refuse_is_no_answer(tmp_path, unjudged):
    """The answers of the pairs have more tokens than DPO's preset for the built-in model allows."""
    long = " ".join(["word"] * 300)
    rows = [{**row, "chosen": f"{row['chosen']} {long}"} for row in DATA["pairs"]]
    done = call("--data", write(tmp_path / "data.jsonl", rows), "--gpu", "rtx3090")
    assert done.exit_code == 1, done.output
    assert "60 of 60 rows are too long" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Write rlhf recommend --data FILE"),
        (["--data", "nowhere.jsonl"], "there is no such file"),
        (["--data", "builtin", "--no-estimate", "--memory", "12GB"], "--memory has no effect"),
        (["--data", "builtin", "--reward", "a", "--reward-model", "b"], "give one"),
        (["--data", "builtin", "--reward", "verifyer", "--no-estimate"], "verifier"),
        (["--data", "builtin", "--gpu", "rtx3091"], "no such card"),
    ],
)
def test_wrong_input_is_one_message(words, said, unjudged):
    with pytest.raises(UserError, match=said):
        call(*words)


def test_a_goal_that_there_is_not_is_refused():
    done = call("--data", "builtin", "--goal", "fame")
    assert done.exit_code == 2
    assert "'quality', 'simplicity', 'speed', 'memory', 'tradition'" in done.output


def test_in_a_terminal_it_asks_what_is_missing(tmp_path, unjudged, monkeypatch):
    file = write(tmp_path / "data.jsonl", DATA["pairs"])
    monkeypatch.setattr(recommend, "in_terminal", lambda: True)
    asked = CliRunner().invoke(rlhf, ["recommend", "--no-estimate"], input=f"{file}\nQwen/Qwen3-8B\n4\n")
    assert asked.exit_code == 0, asked.output
    assert "4  memory" in asked.output
    assert f"rlhf run --method orpo --model Qwen/Qwen3-8B --data {file} --load-in-4bit" in asked.output
    given = ["--data", file, "--model", "builtin", "--goal", "speed"]
    told = CliRunner().invoke(rlhf, ["recommend", "--no-estimate", *given])
    assert told.exit_code == 0, told.output
    assert "Card" not in told.output


@pytest.mark.parametrize(("typed", "found"), [("24GB", {"memory": "24GB"}), ("3090", {"gpu": "3090"}), ("", {})])
def test_a_card_or_its_memory_may_be_typed(typed, found, monkeypatch):
    given = {"data": ("d",), "model": "m", "gpu": None, "memory": None, "goal": "speed"}
    monkeypatch.setattr(recommend.click, "prompt", lambda text, default, **_: typed or default)
    assert recommend._ask(given, no_estimate=False) == found
