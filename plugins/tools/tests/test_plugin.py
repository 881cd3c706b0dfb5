"""`rlhf compare` on two-layer models: what it writes, and its error messages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from rlhf_tools import candidates, comparing, page
from rlhf_tools.results import Answer, summarize, total

from rlhf_core.catalog import Catalog
from rlhf_core.cli import main, rlhf
from rlhf_core.config import resolve
from rlhf_core.errors import UserError

REWARD = """
def size(completions, **_):
    return [len(c[0]["content"]) / 100 for c in completions]

def same(completions, **_):
    return [1.0] * len(completions)

def refuses(completions, **_):
    raise ValueError("not today")

def needs(completions, gold):
    return [0.0] * len(completions)
"""
SHORT = ["--prompts", "3", "--max-completion-length", "8"]


@pytest.fixture
def reward(tmp_path):
    file = tmp_path / "reward.py"
    file.write_text(REWARD)
    return file


@pytest.fixture(scope="session")
def other_model(tiny_model, tmp_path_factory):
    """The tiny model with other weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("other")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(7)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.3 * torch.randn_like(weights))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(tiny_model, tmp_path_factory):
    """A LoRA adapter of the tiny model that changes its answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def compare(tmp_path):
    """compare(arguments …) -> (what it printed, comparison.json)."""

    def call(*arguments):
        folder = tmp_path / "out"
        done = CliRunner().invoke(rlhf, ["compare", *map(str, arguments), "--output", str(folder)])
        if done.exception:
            raise done.exception
        return done.output, json.loads((folder / "comparison.json").read_text(encoding="utf-8"))

    return call


@pytest.mark.slow
def test_two_models(compare, tiny_model, other_model, reward, tmp_path):
    arguments = [f"one={tiny_model}", f"two={other_model}", "--reward", f"{reward}:size", "--samples", "2", *SHORT]
    printed, result = compare(*arguments)
    for text in ("3 prompts, one answer each, greedy", "3 prompts, 2 answers each", "wins against one", "size"):
        assert text in printed
    assert [model["name"] for model in result["models"]] == ["one", "two"]
    assert result["settings"]["max_completion_length"] == 8
    assert len(result["prompts"]) == 3
    answers = result["prompts"][0]["answers"]
    assert (len(answers["two"]["greedy"]), len(answers["two"]["sampled"])) == (1, 2)
    assert answers["one"]["greedy"] != answers["two"]["greedy"]
    first, second = (
        [len(row["answers"][name]["greedy"][0]["text"]) / 100 for row in result["prompts"]] for name in ("one", "two")
    )
    greedy = result["results"]["greedy"]
    assert greedy["models"]["one"]["rewards"]["size"] == pytest.approx(sum(first) / 3)
    against = greedy["against_baseline"]["two"]
    assert against["rewards"]["size"]["mean"] == pytest.approx((sum(second) - sum(first)) / 3)
    won = sum(b > a for a, b in zip(first, second, strict=True))
    assert against["win_rate"]["wins"] == won
    html = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "<svg" in html
    assert "://" not in html
    assert "<script" not in html


@pytest.mark.slow
def test_the_same_model_twice_is_even(compare, tiny_model, reward):
    _, result = compare(tiny_model, tiny_model, "--reward", f"{reward}:size", *SHORT)
    first, second = (model["name"] for model in result["models"])
    assert second == f"{first} (2)"
    for mode in ("greedy", "sampled"):
        found = result["results"][mode]["against_baseline"][second]
        assert (found["win_rate"]["rate"], found["win_rate"]["ties"]) == (0.5, 3)
        assert found["rewards"]["size"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "prompts": 3}
        assert found["note"] is None


@pytest.mark.slow
def test_an_adapter_answers_differently_from_its_base(compare, tiny_model, adapter, reward):
    _, result = compare(tiny_model, f"lora={adapter}", "--reward", f"{reward}:same", *SHORT)
    assert result["models"][1]["adapter"] == str(adapter)
    answers = [row["answers"] for row in result["prompts"]]
    assert any(a["lora"]["greedy"][0]["text"] != a[tiny_model.name]["greedy"][0]["text"] for a in answers)


@pytest.mark.slow
def test_without_a_reward_there_are_lengths_and_answers(compare, tiny_model, other_model):
    printed, result = compare(tiny_model, other_model, *SHORT)
    assert "Rewards decide the win rate: --reward NAME" in printed
    assert "length in tokens" in printed
    assert "wins against" not in printed
    assert result["results"]["greedy"]["against_baseline"][other_model.name]["win_rate"] is None


@pytest.mark.slow
def test_a_failed_reward_is_counted_and_does_not_affect_the_win_rate(compare, tiny_model, other_model, reward):
    arguments = ["--reward", f"{reward}:refuses", "--reward", f"{reward}:size", *SHORT]
    printed, result = compare(f"a={tiny_model}", f"b={other_model}", *arguments)
    assert "rewards that failed" in printed
    greedy = result["results"]["greedy"]
    assert greedy["models"]["a"]["failed"] == {"refuses": 3}
    assert greedy["against_baseline"]["b"]["win_rate"] is None
    assert greedy["against_baseline"]["b"]["rewards"]["size"]["prompts"] == 3
    assert result["prompts"][0]["answers"]["a"]["greedy"][0]["errors"] == {"refuses": "ValueError: not today"}


@pytest.fixture
def make_run(tmp_path, tiny_model, write_jsonl):
    """A run's folder: make_run(name, option=…) -> path."""

    def make(name, **values):
        rows = [{"question": f"Question {i}?", "answer": str(i)} for i in range(50)]
        base = {
            "method": "grpo",
            "reward": ["medical_format"],
            "model": str(tiny_model),
            "data": [write_jsonl("rows.jsonl", rows)],
            "num_eval_prompts": 4,
            "max_completion_length": 7,
        }
        config, _ = resolve({**base, **values}, Catalog())
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(json.dumps(config.to_dict()), encoding="utf-8")
        (folder / "model").symlink_to(tiny_model)
        return folder

    return make


def test_the_config_of_a_run_supplies_what_is_not_given(compare, tiny_model, make_run):
    run = make_run("first")
    _, result = compare(f"base={tiny_model}", run)
    assert [model["name"] for model in result["models"]] == ["base", "first"]
    settings = result["settings"]
    assert [reward["name"] for reward in settings["rewards"]] == ["medical_format"]
    assert (settings["max_completion_length"], settings["prompts"]) == (7, 4)
    assert "<answer>" in settings["system_prompt"]
    assert "4 prompts instead of 64" in result["notes"][0]


def test_prompts_are_those_that_the_run_held_out(make_run):
    from rlhf_core.data import loading as data

    run = make_run("first")
    config, method = resolve(json_of(run), Catalog())
    learned = data.load(config.data_specs, method.data, Catalog(), held_out=4, seed=config.options.seed).train
    found = candidates.find_candidates([str(run), str(run)], Catalog())
    asked = candidates.choose_questions([], 64, 0, found, Catalog()).rows
    assert len(asked) == 4
    assert not {row["question"] for row in asked} & {row["question"] for row in learned}


def test_a_run_that_held_out_other_rows_is_named(make_run):
    found = candidates.find_candidates([str(make_run("first")), str(make_run("second", seed=1))], Catalog())
    warnings = candidates.choose_questions([], 4, 0, found, Catalog()).warnings
    assert warnings == ["second held out other rows of its data and may have been trained on some of these prompts"]


def json_of(run):
    from rlhf_core.config import read_file

    return read_file(run / "config.yaml")


# arguments -> what the message says; A, B: two models, R: the reward file, D: data
REFUSALS = {
    "one model": (["A"], "at least two models"),
    "no such folder": (["A", "./nowhere"], "./nowhere: there is no such folder"),
    "no model": (["A", "EMPTY"], "neither a run's folder nor a model's"),
    "a name twice": (["x=A", "x=B"], "the name 'x' is given twice"),
    "unknown reward": (["A", "B", "--reward", "medical_fromat"], "Did you mean 'medical_format'?"),
    "no such column": (["A", "B", "--reward", "R:needs"], "reward 'needs' needs the column gold"),
    "no such data": (["A", "B", "--data", "./none.jsonl"], "./none.jsonl: there is no such file"),
    "a file as output": (["A", "B", "--output", "R"], "is a file"),
    "too long": (["A", "B", "--max-completion-length", "999999"], "reads at most"),
    "no prompts": (["A", "B", "--prompts", "0"], "--prompts"),
    "no temperature": (["A", "B", "--temperature", "0"], "--temperature"),
    "no number": (["A", "B", "--temperature", "nan"], "nan is no number"),
    "too many samples": (["A", "B", "--samples", "99999999"], "--samples"),
    "negative seed": (["A", "B", "--seed", "-1"], "--seed"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_mistakes_are_one_message_and_exit_2(case, tiny_model, other_model, reward, tmp_path, monkeypatch, capsys):
    from rlhf_core.models import loading as models

    arguments, message = REFUSALS[case]
    (tmp_path / "empty").mkdir()
    paths = {"A": tiny_model, "B": other_model, "R:needs": f"{reward}:needs", "EMPTY": tmp_path / "empty"}
    paths |= {"R": reward, "x=A": f"x={tiny_model}", "x=B": f"x={other_model}"}
    monkeypatch.setattr(sys, "argv", ["rlhf", "compare", *(str(paths.get(word, word)) for word in arguments)])
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in said
    assert "Traceback" not in said


def test_a_model_without_weights_is_named(compare, tiny_model, tmp_path):
    folder = tmp_path / "hollow"
    folder.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).symlink_to(file)
    with pytest.raises(UserError, match="hollow has no weights: model.safetensors or"):
        compare(folder, tiny_model, *SHORT)


def test_a_comparison_is_not_overwritten(compare, tiny_model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.json").write_text("{}")
    with pytest.raises(UserError, match=r"has comparison\.json already"):
        compare(tiny_model, tiny_model)


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    assert candidates._split("a=b/c") == ("a", "b/c")
    assert candidates._split("runs/lr=1") == (None, "runs/lr=1")
    assert candidates._split("lr=1") == (None, "lr=1")
    assert candidates._default_name("runs/first/model") == "first"
    assert candidates._default_name("Qwen/Qwen3-0.6B") == "Qwen3-0.6B"
    assert candidates._unique(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    with pytest.raises(UserError, match="write NAME=PATH"):
        candidates._split("a=")


def test_the_weighted_sum():
    weights = {"a": 1.0, "b": 0.5}
    assert total({"a": 1.0, "b": 4.0}, {}, weights) == 3.0
    assert total({"a": 1.0, "b": None}, {}, weights) == 1.0
    assert total({"a": 1.0, "b": None}, {"b": "failed"}, weights) is None
    assert total({"a": None, "b": None}, {}, weights) is None


def answer(text: str, score: float | None) -> Answer:
    return Answer(text, 3, True, {"r": score}, {}, score)


def test_prompts_where_a_reward_does_not_apply_are_left_out():
    """Prompt 0 has means 0.5 and 1, prompt 1 has no score of the first model, prompt 2 has 1 and 0."""
    first = [[answer("x", 0.0), answer("x", 1.0)], [answer("x", None)], [answer("x", 1.0)]]
    second = [[answer("x", 1.0), answer("x", 1.0)], [answer("x", 1.0)], [answer("x", 0.0)]]
    found = summarize({"a": first, "b": second}, ["r"], 0)
    assert found["models"]["a"]["rewards"]["r"] == 0.75
    against = found["against_baseline"]["b"]
    assert (against["rewards"]["r"]["mean"], against["rewards"]["r"]["prompts"]) == (-0.25, 2)
    assert (against["win_rate"]["wins"], against["win_rate"]["ties"], against["win_rate"]["losses"]) == (1, 1, 1)
    assert against["win_rate"]["rate"] == (0.75 + 0) / 2


def test_the_page_escapes_what_data_and_models_write():
    evil = "<script>alert(1)</script>\"&'咳嗽"
    answers = {name: [[answer(evil, 1.0)]] for name in (evil, "b")}
    result = {
        "models": [{"name": name, "given": evil} for name in answers],
        "settings": {"data": evil, "prompts": 1, "samples": 1, "temperature": 1.0, "max_completion_length": 8}
        | {"system_prompt": evil, "rewards": [{"name": "r", "spec": evil}]},
        "notes": [evil],
        "results": {mode: summarize(answers, ["r"], 0) for mode in ("greedy", "sampled")},
        "prompts": [
            {
                "prompt": [{"role": "user", "content": evil}],
                "columns": {"answer": evil},
                "answers": {n: {mode: [vars(answer(evil, 1.0))] for mode in ("greedy", "sampled")} for n in answers},
            }
        ],
    }
    html = page.render(result)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "咳嗽" in html


def test_help_imports_no_torch():
    code = (
        "import sys\nfrom rlhf_core.cli import main\nsys.argv = ['rlhf', 'compare', '--help']\n"
        "try: main()\nexcept SystemExit as end: code = end.code\n"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'transformers', 'pydantic')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ask several models the same prompts" in done.stdout


def test_a_comparison_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    def stopped(*_, **__):
        assert folder.is_dir()
        raise UserError("stopped")

    monkeypatch.setattr(comparing, "prepare", stopped)
    (tmp_path / "own").mkdir()
    for folder in (tmp_path / "made", tmp_path / "own"):
        with pytest.raises(UserError, match="stopped"):
            comparing.run([], Catalog(), output=str(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
    assert not any((tmp_path / "own").iterdir())


def test_models_answer_in_4_bits(tiny_model, compare, monkeypatch):
    from rlhf_core import commands

    load, quantized = commands.load_model, []

    def loaded(*given):
        model = load(*given)
        quantized.append(model.is_loaded_in_4bit)
        return model

    monkeypatch.setattr(commands, "load_model", loaded)
    _, result = compare(f"a={tiny_model}", f"b={tiny_model}", "--load-in-4bit", *SHORT)
    assert quantized == [True, True]
    assert result["settings"]["load_in_4bit"] is True
