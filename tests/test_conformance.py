"""Every plugin folder keeps the rules of the conformance kit, and the kit finds what breaks them."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlhf_core import testing
from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.testing import check_formatter, check_method, check_reward, formatters, golden, imports, probes
from tests.endpoint_server import EndpointServer

ROOT = Path(__file__).parent.parent
MEASURE, MEASURED = imports._measure, {}
FOLDERS = [
    path.parent for folder in ("plugins", "reward_functions") for path in (ROOT / folder).glob("*/pyproject.toml")
]


def offered(kind: str) -> list[str]:
    """The plugins of a kind in all folders, as they declare them."""
    found = []
    for folder in sorted(FOLDERS):
        points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
        found += points.get(f"rlhf.{kind}", {})
    return found


@pytest.fixture(scope="module")
def scorer(tmp_path_factory, tiny_model) -> Path:
    """A reward model of random weights."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("scorer")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def endpoint(tmp_path, monkeypatch):
    """The address of a judge."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with EndpointServer() as server:
        yield server.url


@pytest.mark.slow
@pytest.mark.parametrize("name", offered("rewards"))
def test_our_rewards_keep_the_rules(name, request):
    parameters = {"path": str(request.getfixturevalue("scorer"))} if name == "reward_model" else {}
    if name.startswith("judge"):
        parameters = {"model": "loopback", "base_url": request.getfixturevalue("endpoint")}
    check_reward(name, **parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", offered("methods"))
def test_our_methods_keep_the_rules(name):
    check_method(name)


@pytest.mark.parametrize("name", offered("formatters"))
def test_our_formatters_keep_the_rules(name, monkeypatch):
    monkeypatch.setattr(imports, "_measure", measure_once)
    check_formatter(name)


def measure_once(module, compiled):
    """Most formatters share a module."""
    if module not in MEASURED:
        MEASURED[module] = MEASURE(module, compiled)
        if MEASURED[module][0] > imports.LIMIT:  # another try
            return MEASURED.pop(module)
    return MEASURED[module]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_golden_files_beside_a_module_are_packaged(folder):
    """hatchling takes the module alone, unless told."""
    wheel = tomllib.loads((folder / "pyproject.toml").read_text()).get("tool", {}).get("hatch", {})
    for file in [*folder.glob("*_golden.jsonl"), *folder.glob("*_examples.jsonl")]:
        assert file.name in wheel["build"]["targets"]["wheel"]["only-include"]


REWARDS = """
import os, random, re, signal, time
from rlhf_core import Reward

def words(text): return min(1.0, len(set(text.split())) / 100)
def each(score): return lambda completions, **_: [score(text) for text in completions]
calls = []

good = Reward(lambda completions, **_: [1.0 if "likely pneumonia" in t and len(t) < 60 else 0.0 for t in completions], range=(0, 1), name="good")

def short(completions, **_): return [1.0]
def nan(completions, **_): return [float("nan")] * len(completions)
def text(completions, **_): return ["1.0"] * len(completions)
def mutates(completions, answer, **_):
    answer[:] = [None] * len(answer)
    return [0.5] * len(completions)
def curious(completions, **columns):
    assert "a_column_it_does_not_know" not in columns
    return [0.5] * len(completions)
def first_message(prompts, completions, **_):
    assert prompts[0][0]["role"] == "user"
    return [0.5] * len(completions)
def counter(completions, **_):
    calls.append(1)
    return [float(len(calls))] * len(completions)
def relative(completions, **_):
    first = len(completions[0][0]["content"])
    return [float(len(c[0]["content"]) - first) for c in completions]
def process(completions, **_): return [float(os.getpid())] * len(completions)
def alarm(completions, **_):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    return [0.5] * len(completions)
beyond = Reward(each(lambda t: float(len(t))), range=(0, 1), name="beyond")
empty = Reward(each(lambda t: 1.0 / len(t) if t != "x" else 0.0), name="empty")
surrogate = Reward(each(lambda t: float(len(t.encode()) > 0)), name="surrogate")
huge = Reward(each(lambda t: time.sleep(len(t) // 100_000) or 0.5), isolation="process", timeout=0.5, name="huge")
hackable = Reward(each(lambda t: float("pneumonia" in t)), range=(0, 1), name="hackable")
chatty = Reward(each(lambda t: float(len(t))), name="chatty")
gullible = Reward(each(lambda t: float("likely" in t or "<!--" in t)), range=(0, 1), name="gullible")
random_but_says_so = Reward(each(lambda t: 0.2 + 0.01 * random.random()), deterministic=False, name="random_but_says_so")
ranked = Reward(relative, batchwise=True, view="messages", name="ranked")
async def waits(completions, **_): return [float("likely pneumonia" in c[0]["content"] and len(c[0]["content"]) < 60) for c in completions]
class Built:
    def __init__(self, *, limit: int = 60): self.limit = limit
    def __call__(self, completions, **_): return [float("likely pneumonia" in c[0]["content"] and len(c[0]["content"]) < self.limit) for c in completions]
"""
GOLDEN = {
    "case": "full",
    "prompt": "Fever and rusty sputum?",
    "completion": "It is most likely pneumonia.",
    "answer": "pneumonia",
}
POOR = {"case": "none", "prompt": "Fever?", "completion": "No idea.", "answer": "flu"}
PARTIAL = {"case": "partial", "prompt": "Fever?", "completion": "Maybe flu, maybe not.", "answer": "flu"}


@pytest.fixture
def imports_unchecked(monkeypatch):
    """The time of an import is measured in processes, which other tests cover."""
    monkeypatch.setattr(imports, "examine", lambda report, module: None)


@pytest.fixture
def made(tmp_path, imports_unchecked):
    """made(name, score) -> the specification of a reward above, with one full golden case of that score."""

    def make(name: str, score, **values) -> str:
        (tmp_path / "made.py").write_text(REWARDS)
        rows = [{**GOLDEN, "score": score, **values}, *({**row, "score": [-1e9, 1e9]} for row in (PARTIAL, POOR))]
        (tmp_path / "made_golden.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return f"{tmp_path / 'made.py'}:{name}"

    return make


ALLOWED = {"allows": dict.fromkeys(probes.NAMES, "not what this test is about")}

# reward -> the rule that it breaks, and part of the message
BROKEN = {
    "short": ("returns one finite number", "returned 1 scores for"),
    "nan": ("returns the golden scores", "nan is not a finite number"),
    "text": ("returns the golden scores", "'1.0' is text, not a number"),
    "mutates": ("leaves its input as it was", "it changed answer: work on a copy"),
    "curious": ("ignores columns that it does not know", "AssertionError"),
    "first_message": ("takes conversations", "AssertionError"),
    "counter": ("is deterministic", "or declare deterministic=False"),
    "relative": ("scores a row the same", "or declare batchwise=True"),
    "process": ("is rebuilt in a fresh process", "keep no state in the module"),
    "alarm": ("works off the main thread", "signal only works in main thread"),
    "beyond": ("stays within its range", "is outside 0 to 1"),
    "empty": ("survives empty", "an empty text as the answer: ZeroDivisionError"),
    "surrogate": ("survives empty", "a lone surrogate as the answer: UnicodeEncodeError"),
    "huge": ("survives empty", "200,000 times one letter as the answer: timeout"),
    "hackable": ("scores no cheap text", "keywords_stuffed"),
    "chatty": ("scores no cheap text", "over_long"),
    "gullible": ("is not talked into a higher score", "an answer that hides it in a comment earns 1, without it 0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_of_a_reward_is_reported_with_what_to_do(made, name):
    rule, said = BROKEN[name]
    allows = {} if name in ("hackable", "chatty") else ALLOWED
    with pytest.raises(AssertionError, match=f"✗ .*({rule})") as caught:
        check_reward(made(name, [-1e9, 1e9], **allows))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["good", "waits", "Built"])
def test_functions_coroutines_and_classes_that_keep_the_rules_pass(made, name):
    report = check_reward(made(name, 1))
    assert report.ok
    assert not any(result.faults for result in report.results)


def test_the_rules_follow_what_a_reward_declares(made):
    assert check_reward(made("random_but_says_so", [0, 1], **ALLOWED)).ok
    assert check_reward(made("ranked", [-1e9, 1e9], **ALLOWED)).ok


def test_parameters_of_a_case_override_those_that_were_passed(made):
    with pytest.raises(AssertionError, match="the score is 0, expected 1"):
        check_reward(made("Built", 1), limit=3)
    assert check_reward(made("Built", 1, parameters={"limit": 50}), limit=3).ok
    with pytest.raises(AssertionError, match="has no parameter 'limmit'. Did you mean 'limit'"):
        check_reward(made("Built", 1), limmit=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("length:min=5000,max=10", "could not be set up: ValueError: min=5000 and max=10"),
        ("medical_fromat", "Did you mean 'medical_format'"),
        ("no_module:f", "there is no module no_module"),
        ("./nothing.py:f", "there is no file nothing.py"),
        ("length:mni=3", "has no parameter 'mni'. Did you mean 'min'"),
        ("reward_model", "not checked: it needs path: str: check it with reward_model:path=…"),
    ],
)
def test_what_can_not_be_bound_gets_the_message_of_a_run(target, said):
    with pytest.raises(AssertionError) as caught:
        check_reward(target)
    assert said in str(caught.value)


def test_a_reward_by_path_needs_no_golden_file_and_the_report_says_what_was_left_out(made, tmp_path):
    spec = made("good", 1)
    (tmp_path / "made_golden.jsonl").unlink()
    assert "hackability was not probed" in str(check_reward(spec))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"case": "best"}, "case is one of full, partial, none, malformed, not 'best'"),
        ({"score": "high"}, "score is a number, null or [low, high], not 'high'"),
        ({"allows": ["empty"]}, "allows maps the name of a probe to the reason"),
        ({"allows": {"emtpy": "why"}}, "allows names no probe emtpy"),
        ({"allows": {"empty": " "}}, "allows maps the name of a probe to the reason"),
        ({"prompt": 3}, "prompt is text, or a list of {role, content}"),
    ],
)
def test_a_malformed_golden_case_is_reported_with_its_line(made, tmp_path, values, said):
    made("good", **{"score": 1, **values})
    cases, (fault,) = golden.read(tmp_path / "made_golden.jsonl", "good", probes.NAMES)
    assert fault.startswith(f"made_golden.jsonl line 1: {said}")
    assert [case.case for case in cases] == ["partial", "none"]  # the other lines


def test_a_malformed_golden_file_breaks_a_rule(made):
    with pytest.raises(AssertionError, match="✗ has golden cases\n *made_golden.jsonl line 1: case is one of full"):
        check_reward(made("good", 1, case="best"))


def test_a_probe_that_is_allowed_is_shown_with_its_reason(made):
    report = check_reward(made("hackable", 1, allows=dict.fromkeys(probes.NAMES, "this is intended")))
    assert "this is intended" in str(report)
    assert "the cheapest exploit: " in str(report)


INSTALLED = """
from rlhf_core import Reward, hookimpl
{top}
def plain(completions, **_): return [float("pneumonia" in t and len(t) < 60) for t in completions]
@hookimpl
def rlhf_rewards(): return [Reward(plain)]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("top", "said"),
    [
        ("import time; time.sleep(0.4)", "takes 0.4"),
        ("import torch", "imports torch"),
        ("", "plain_module_golden.jsonl is missing"),
    ],
)
def test_an_installed_reward_imports_fast_without_torch_and_has_golden_cases(distribution, top, said):
    distribution("plain", {"plain_module": INSTALLED.format(top=top)}, {"rlhf.rewards": {"plain": "plain_module"}})
    with pytest.raises(AssertionError) as caught:
        check_reward("plain")
    assert said in str(caught.value)


def test_every_hackability_probe_is_made_from_a_golden_answer():
    answer = "<think>Cough and fever.</think>\n<answer>pneumonia</answer>"
    row = golden.Row("", [{"role": "user", "content": "Which illness?"}], answer, {"keywords": ["lung"], "n": 3})
    made = dict(probes.variants(row))
    assert made.keys() == set(probes.NAMES)
    assert made["shell_empty"] == "<think></think>\n<answer></answer>"
    assert made["prompt_echoed"] == "Which illness?"
    assert probes.stuffing(row) == ["3", "illness", "lung", "Which"]
    assert probes.refilled("诊断：肺炎\n建议：休息", "…") == "诊断： …\n建议： …"
    assert probes.refilled(r"So \boxed{4}", "") == r"\boxed{}"
    assert probes.refilled("plain", "") is None


METHOD = """
import socket
from pydantic import Field
from rlhf_core import hookimpl
from rlhf_method_sft import SFT

class Broken(SFT):
    name = "broken"
    def trainer(self, run):
        import torch, transformers
        made = super().trainer(run)
        frozen = run.model.get_input_embeddings().weight.requires_grad_(False)
        class Meddles(transformers.TrainerCallback):
            def on_step_end(self, *_, **__):
                frozen.data.add_(0.01)
                try: socket.getaddrinfo("example.com", 443)
                except OSError: pass
        made.add_callback(Meddles())
        save = made.save_model
        def corrupted(folder, **_):
            save(folder)
            from safetensors.torch import load_file, save_file
            from pathlib import Path
            for file in Path(folder).glob("*.safetensors"):
                save_file({k: v + 0.1 for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
        made.save_model = corrupted
        return made

class Careless(SFT):
    name = "careless"
    class Options(SFT.Options):
        learning_rate: float = 1e-5
@hookimpl
def rlhf_methods(): return [Broken, Careless]
"""


@pytest.mark.slow
def test_all_broken_rules_of_a_method_are_reported(distribution, imports_unchecked):
    points = {"broken": "method_module", "careless": "method_module"}
    distribution("broken", {"method_module": METHOD}, {"rlhf.methods": points})
    with pytest.raises(AssertionError) as caught:
        check_method("broken")
    said = str(caught.value)
    assert "weights that are not trained have changed: model.embed_tokens.weight" in said
    assert "the saved model's logits differ" in said
    assert "it tried to reach example.com" in said
    with pytest.raises(AssertionError) as caught:
        check_method("careless")
    assert "option learning_rate has no description" in str(caught.value)
    assert "{'learning_rate': -1.0} is accepted" in str(caught.value)


FORMATTERS = """
from rlhf_core import Example, Formatter, hookimpl
def user(text): return [{"role": "user", "content": text}]
def careless(row): return Example(prompt=user(str(row.get("patient"))))
def strict(row):
    if not isinstance(row["patient"], str): raise ValueError("patient is no text")
    return Example(prompt=user(row["patient"]))
def raises(row): return Example(prompt=user(["x"][row["patient"].count("?") + 1 - len(row["patient"].split("?"))]))
def bare(row): return Example(prompt=row["patient"])
@hookimpl
def rlhf_formatters():
    return [Formatter("careless", {"patient", "a"}, careless), Formatter("strict", {"patient", "b"}, strict), Formatter("bare", {"patient", "c"}, bare)]
"""


def test_broken_rules_of_a_formatter_are_reported(distribution, tmp_path, imports_unchecked):
    names = ("careless", "strict", "bare")
    distribution("odd", {"odd_module": FORMATTERS}, {"rlhf.formatters": dict.fromkeys(names, "odd_module")})
    with pytest.raises(AssertionError, match="odd_module_examples.jsonl is missing or empty"):
        check_formatter("strict")
    rows = [
        {"formatter": "careless", "row": {"patient": "Fever?", "a": "", "b": ""}},
        {"formatter": "strict", "row": {"patient": "Fever?", "b": ""}},
        {"formatter": "bare", "row": {"patient": "Fever?", "c": ""}},
    ]
    (tmp_path / "site" / "odd_module_examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(AssertionError) as caught:
        check_formatter("careless")
    assert "a row whose patient is a truth value instead of text is accepted" in str(caught.value)
    with pytest.raises(AssertionError, match="prompt is 'Fever.': return a list of"):
        check_formatter("bare")
    with pytest.raises(AssertionError) as caught:
        check_formatter("strict")
    assert "a row whose b is a truth value instead of text is accepted" in str(caught.value)
    assert "patient" not in str(caught.value).partition("names the row")[2]


def test_rows_of_other_formatters_must_not_be_read_as_its_own(distribution, tmp_path, imports_unchecked):
    code = FORMATTERS.replace('{"patient", "a"}', '{"patient"}').replace('{"patient", "b"}', '{"other"}')
    distribution("odd", {"odd_module": code}, {"rlhf.formatters": {"careless": "odd_module", "strict": "odd_module"}})
    rows = [
        {"formatter": "careless", "row": {"patient": "Fever?"}},
        {"formatter": "strict", "row": {"patient": "Fever?", "other": "x"}},
    ]
    (tmp_path / "site" / "odd_module_examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = formatters.examine("careless")
    assert "a row of strict, is read as careless: declare more columns" in str(report)
    assert "it is read as careless: declare more columns" in str(formatters.examine("strict"))


@pytest.mark.slow
def test_the_command_survives_a_plugin_that_ends_its_process(distribution):
    codes = {"ends": "import os; os._exit(7)", "plain_module": INSTALLED.format(top="")}
    distribution("odd", codes, {"rlhf.rewards": {"ends": "ends", "plain": "plain_module"}})
    result = CliRunner().invoke(rlhf, ["plugins", "check", "ends", "plain", "length", "--json"])
    assert result.exit_code == 1
    found = {report["name"]: report for report in json.loads(result.output)}
    assert "its process ended with exit code 7" in found["ends"]["results"][0]["faults"][0]
    assert [found[name]["ok"] for name in ("ends", "plain", "length")] == [False, False, True]
    assert found["length"]["distribution"] == "rlhf-reward-length"
    assert "ends" not in sys.modules


@pytest.mark.slow
def test_without_names_every_plugin_gets_a_line(distribution, monkeypatch):
    distribution(
        "odd",
        {"ends": "import os; os._exit(7)"},
        {"rlhf.rewards": {"ends": "ends"}, "rlhf.callbacks": {"seen": "ends"}},
    )
    entries = Catalog.entries
    few = {
        "methods": [],
        "rewards": ["ends", "length", "reward_model"],
        "formatters": ["prompt"],
        "callbacks": ["seen"],
        "commands": ["compare"],
    }
    monkeypatch.setattr(
        Catalog, "entries", lambda self, kind=None: [e for e in entries(self, kind) if e.name in few[e.kind]]
    )
    result = CliRunner().invoke(rlhf, ["plugins", "check"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].startswith("✗ reward ends (odd 1.0): 1 of 1 rule broken")
    assert lines[1] == "✓ reward length (rlhf-reward-length 0.1.0): keeps 16 rules"
    assert lines[2].startswith("– reward reward_model")
    assert "check it with" in lines[2]
    assert [line[0] for line in lines[3:6]] == ["✓", "✗", "✓"]
    assert lines[6] == "6 plugins, 2 of them with broken rules"


def test_the_kit_is_versioned_with_the_core():
    assert testing.VERSION == "0.1.0"
