"""The command line: quick where it lists, clear where it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from rlhf_core import cli, environment
from rlhf_core.cli import rlhf
from rlhf_core.errors import UserError
from rlhf_core.method import TrainingOptions

HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate")


def imported(*arguments: str) -> tuple[str, set[str]]:
    """What `rlhf ARGUMENTS` prints, and the top-level modules that it imports."""
    code = (
        "import sys\nsys.argv = ['rlhf', *sys.argv[1:]]\nfrom rlhf_core.cli import main\n"
        "try: main()\nexcept SystemExit as end: code = end.code\n"
        "print('\\n@@', ' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    text, _, modules = result.stdout.partition("\n@@")
    return text, set(modules.split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["methods"], ["rewards"], ["formatters", "--help"], ["plugins"], ["--version"]],
)
def test_help_and_listings_import_nothing_heavy_and_no_plugin(arguments):
    text, modules = imported(*arguments)
    assert text.strip()
    assert modules.isdisjoint({*HEAVY, "pydantic", "yaml"})
    assert not [m for m in modules if m.startswith(("rlhf_method", "rlhf_reward", "rlhf_formatter"))]


def test_the_listing_of_formats_imports_formatters_and_nothing_heavy():
    text, modules = imported("formatters")
    assert "The instruction and its input are the prompt" in " ".join(text.split())
    assert modules.isdisjoint({*HEAVY, "pydantic", "yaml"})
    assert not [m for m in modules if m.startswith(("rlhf_method", "rlhf_reward"))]


def test_a_commands_help_imports_no_torch():
    text, modules = imported("run", "--method", "grpo", "--help")
    assert "--num-generations" in text
    assert modules.isdisjoint(HEAVY)


def test_every_shared_option_has_a_description_and_is_in_the_help():
    text = " ".join(CliRunner().invoke(rlhf, ["run", "--help"]).output.split())
    for name, field in TrainingOptions.model_fields.items():
        assert field.description, name
        assert "--" + name.replace("_", "-") in text


def run(*arguments: str):
    return CliRunner().invoke(rlhf, ["run", *arguments])


GRPO = ("--method", "grpo", "--reward", "medical_format")

# arguments -> what the message says; all of them before torch is imported
MISTAKES = {
    "no method": ([], "which method?"),
    "unknown method": (["--method", "gpro"], "there is no method 'gpro'. Did you mean 'grpo'"),
    "no reward": (["--method", "grpo"], "needs a reward"),
    "unknown reward": (["--method", "grpo", "--reward", "medical_formt"], "Did you mean 'medical_format'"),
    "unknown parameter": (
        ["--method", "grpo", "--reward", "medical_format:section=a"],
        "has no parameter 'section'. Did you mean 'sections'",
    ),
    "not a number": ([*GRPO, "--learning-rate", "fast"], "--learning-rate fast"),
    "incomplete groups": ([*GRPO, "--num-generations", "7"], "can't be split into groups of num_generations = 7"),
    "bad --set": ([*GRPO, "--set", "epsilon"], "write name=value"),
    "no config file": ([*GRPO, "--config", "nowhere.yaml"], "--config nowhere.yaml: No such file"),
    "no run to resume": (["--resume", "nowhere"], "this is not a run's folder"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[case]
    result = run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_misspelt_flag_is_reported_by_click():
    result = run(*GRPO, "--max-stpes", "3")
    assert result.exit_code == 2
    assert "--max-steps" in result.output


def test_exit_codes_of_the_process(tmp_path):
    def code(*arguments):
        command = [sys.executable, "-m", "rlhf_core", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert code("--help").returncode == 0
    mistake = code("run", "--method", "gpro")
    assert mistake.returncode == 2
    assert mistake.stderr.startswith("Error: there is no method")
    assert "Traceback" not in mistake.stderr
    assert code("run", "--no-such-flag").returncode == 2


def test_a_folder_that_may_not_be_read_and_one_that_is_gone_are_said(tmp_path, monkeypatch, capsys):
    def look_into(*_, **__):
        raise PermissionError(13, "denied", "locked/x")

    monkeypatch.setattr(cli.rlhf, "main", look_into)
    assert cli.exit_code() == 2
    assert capsys.readouterr().err == "Error: locked/x: denied\n"
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert cli.exit_code() == 2
    assert "the current folder can't be used" in capsys.readouterr().err


def test_a_signal_that_every_process_gets_counts_once(monkeypatch):
    now = iter([10.0, 10.1, 10.4, 10.6])  # who presses Ctrl-C again and again is heard
    monkeypatch.setattr(environment.time, "monotonic", lambda: next(now))
    assert [environment.comes_again() for _ in range(4)] == [False, True, True, False]


@pytest.mark.slow
def test_a_mistake_in_the_data_is_reported_before_torch_is_imported(tmp_path, monkeypatch):
    code = (
        "import sys\nfrom rlhf_core.errors import UserError\nfrom rlhf_core.cli import rlhf\n"
        "try: rlhf.main(sys.argv[1:], standalone_mode=False)\n"
        "except UserError as error: print(error, 'torch' in sys.modules)"
    )
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n')
    for file, message in {"nowhere.jsonl": "there is no such file or folder", "odd.jsonl": "no formatter fits"}.items():
        command = [sys.executable, "-c", code, "run", *GRPO, "--data", file]
        said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert message in said.stdout
        assert said.stdout.endswith(" False\n"), said.stdout


def test_underscores_and_dashes_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("--method", "grpo", "--reward", "nothing_there", "--max_steps", "3", "--load_in_4bit", "--no_lora")
    assert "quantized weights can't be trained" in str(result.exception)


def test_plugins_check_reports_each_in_a_process_of_its_own(distribution):
    distribution("bad", {"bad_module": "import no_such_package"}, {"rlhf.rewards": {"x": "bad_module"}})
    listing = CliRunner().invoke(rlhf, ["plugins"])
    assert listing.exit_code == 0
    assert "bad_module" not in sys.modules


@pytest.mark.slow
def test_plugins_check(tmp_path):
    result = CliRunner().invoke(rlhf, ["plugins", "check", "medical_format"])
    assert result.exit_code == 0
    assert result.output.startswith("reward medical_format (rlhf-reward-medical-format 0.1.0)\n✓ is found")
    unknown = CliRunner().invoke(rlhf, ["plugins", "check", "medical_fromat"])
    assert "there is no plugin 'medical_fromat'. Did you mean 'medical_format'?" in str(unknown.exception)


def test_a_plugins_command_is_listed_and_called(distribution):
    code = """
    import click
    from rlhf_core import hookimpl
    @click.command()
    @click.option("--name", default="you")
    def hello(name): click.echo(f"hello {name}")
    @hookimpl
    def rlhf_commands(): return [hello]
    """
    distribution("cmd", {"cmd_module": code}, {"rlhf.commands": {"hello": "cmd_module"}})
    assert "hello" in CliRunner().invoke(rlhf, ["--help"]).output
    assert "cmd_module" not in sys.modules
    assert CliRunner().invoke(rlhf, ["hello", "--name", "me"]).output == "hello me\n"


def test_dry_run_trains_nothing(tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    row = json.dumps({"question": "What helps against fever?", "answer": "rest"})
    (tmp_path / "a.jsonl").write_text(f"{row}\n" * 4)  # as many as a step needs
    result = run(*GRPO, "--model", str(tiny_model), "--data", "a.jsonl", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "format question_answer" in result.output
    assert "reward medical_format of the reference answer 'rest': 0.0" in result.output
    assert "The first prompt, as the model gets it" in result.output
    assert "<|im_start|>user\nWhat helps against fever?<|im_end|>\n<|im_start|>assistant\n" in result.output
    assert "All checks passed. Nothing was trained" in result.output
    assert not (tmp_path / "runs").exists()


def test_dry_run_shows_a_conversation_as_it_is_learned(tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "What helps against fever?", "answer": "rest"}))
    result = run("--method", "sft", "--model", str(tiny_model), "--data", "a.jsonl", "--dry-run")
    assert result.exit_code == 0, result.output
    shown = result.output.partition("The first conversation, as the model gets it:")[2]
    assert "<|im_start|>user\nWhat helps against fever?" in shown
    assert shown.count("<|im_start|>assistant\n") == 1


# mistakes that are found once the model's configuration is read, and before its weights are
LATER = {
    "no such data": (["--data", "nowhere.jsonl"], "no such file or folder"),
    "malformed data": (["--data", "bad.jsonl"], "bad.jsonl line 2 is not JSON"),
    "missing column": (["--data", "a.jsonl", "--reward", "r.py:needs_level"], "needs the column level, which a.jsonl"),
    "no such model": (["--model", "./nowhere"], "there is no such folder"),
    "too long": (
        ["--data", "a.jsonl", "--max-prompt-length", "8"],
        "1 of 1 rows are too long, more than half: the prompt has more than --max-prompt-length 8 tokens",
    ),
    "no such callback": (["--callback", "foo"], "there is no callback 'foo'"),
    "no such module": (
        ["--lora-target-modules", "q_proj,o_porj"],
        "--lora-target-modules o_porj: the model has no such module. Did you mean 'o_proj'",
    ),
    "no such single module": (["--lora-target-modules", "oproj"], "no such module. Did you mean 'o_proj'"),
    "no such scheduler": (["--lr-scheduler-type", "cosin"], "knows no such name. Did you mean 'cosine'"),
    "no such optimizer": (["--optim", "adamw_torhc"], "knows no such name. Did you mean 'adamw_torch'"),
    "unknown setting": (["--set", "epsilon_hihg=1"], "has no such field. Did you mean 'epsilon_high'"),
    "setting of a wrong type": (["--set", "sync_ref_model=much"], "--set sync_ref_model=much"),
    "settings that clash": (["--set", "generation_batch_size=9"], "can't be split into groups of num_generations"),
    "output is a file": (["--output-dir", "a.jsonl"], "is a file"),
}


@pytest.mark.parametrize("case", LATER)
def test_mistakes_found_before_the_weights_load(case, tmp_path, monkeypatch):
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "What helps against fever?", "answer": "rest"}))
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question"}')
    (tmp_path / "r.py").write_text("def needs_level(completions, level): return [0.0] * len(completions)")
    arguments, message = LATER[case]
    result = run(*GRPO, *arguments)
    assert isinstance(result.exception, UserError), result.exception
    assert message in str(result.exception)


def test_an_output_folder_that_holds_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / "config.yaml").write_text("method: grpo")
    result = run(*GRPO, "--output-dir", "old")
    assert "holds a run already. Resume it: rlhf run --resume old. For another run, give another" in str(
        result.exception
    )
