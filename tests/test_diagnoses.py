"""Each diagnosis is found where it is wrong, alone, and none where nothing is."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest

from rlhf_core.diagnoses import catalog, folder, reading, showing, texts
from rlhf_core.diagnoses.finding import ALL, change, correlation
from rlhf_core.errors import UserError
from rlhf_core.words import say

GRPO = {"frac_reward_zero_std": 0.25, "reward": 0.5, "loss": 0.01, "grad_norm": 0.1, "kl": 0.01, "entropy": 0.3}
GRPO |= {"learning_rate": 1e-5, "completions/clipped_ratio": 0.0, "clip_ratio/region_mean": 0.0}
PPO = {"objective/kl": 1.0, "reward": 0.5, "loss": 0.01, "grad_norm": 0.1, "kl": 0.01, "policy/entropy_avg": 0.3}
PPO |= {"val/explained_variance": -0.2, "loss/value_avg": 0.03, "policy/clipfrac_avg": 0.01, "frac_reward_zero_std": 0}
DPO = {"rewards/margins": 0.4, "rewards/accuracies": 0.8, "loss": 0.5, "grad_norm": 1.0, "logps/chosen": -20.0}
DPO |= {"logps/rejected": -40.0, "learning_rate": 1e-5}
RM = {"min_reward": -1.0, "margin": 1.0, "accuracy": 0.8, "loss": 0.4, "grad_norm": 1.0, "learning_rate": 1e-5}
SFT = {"mean_token_accuracy": 0.5, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-5}
CLEAN = {"grpo": GRPO, "ppo": PPO, "dpo": DPO, "reward_model": RM, "sft": SFT}
LOOP = "休息多喝水。" * 20


def found(method, line, steps=60, samples=(), each=1, **known):
    """The names that are found, apart from what is no fault. `line` gives what a step has otherwise than a clean run."""
    run = reading.Summary(method=method, max_steps=known.pop("max_steps", None), **known)
    change_of = line if callable(line) else lambda step: line
    metrics = [{"step": step, **CLEAN[method], **change_of(step)} for step in range(each, steps + 1, each)]
    lines: list[dict] = []
    catalog.replay(run, iter(metrics), iter(samples), iter(known.get("evaluations", ())), lines.append, where="r")
    for one in lines:
        json.dumps(one)
        assert "{" not in one["command"].replace("{run}", "")
        assert one["evidence"]
        assert len(one["samples"]) <= 3
    return [one["name"] for one in lines if one["level"] != "info"]


def answers(text_of, score_of=lambda step, i: i % 3 / 3, steps=60, **more):
    """Eight answers a step, in two groups."""
    for step in range(1, steps + 1):
        for i in range(8):
            sample = {"step": step, "prompt": f"{step}/{i // 4}", "completion": text_of(step, i), "finished": True}
            yield {**sample, "rewards": {"r": score_of(step, i)}, "tokens": 20, **more}


def words(step, i):
    return f"Answer {step} of {i}: " + " ".join(f"word{(step * 7 + i * 13 + k * k) % 97}" for k in range(12))


def pair_lines(margin_of, steps=60):
    for step in range(1, steps + 1):
        for i in range(4):
            tokens = [10 + (step * 5 + i * 3) % 11, 12]
            texts_of = {"prompt": f"{step}.{i}", "chosen": "a", "rejected": "b"}
            yield {"step": step, **texts_of, "tokens": tokens, "metrics": {"margin": margin_of(step, i, tokens)}}


TIED = {"frac_reward_zero_std": 1.0}
CUT = {"completions/clipped_ratio": 1.0}
ONLY = {
    "nan": ("sft", lambda step: {"loss": None} if step == 30 else {}, {}),
    "kl-runaway": ("grpo", lambda step: {"kl": step / 5}, {}),
    "kl-negative": ("ppo", lambda step: {"kl": -0.1 - step % 3 / 100, "objective/kl": -2.0}, {}),
    "policy-still": ("grpo", {"kl": 1e-9}, {"options": {"learning_rate": 1e-6, "lora": True}}),
    "steps-rounded-away": ("grpo", {"kl": 0.0}, {"options": {"dtype": "bfloat16", "lora": False}}),
    "entropy-collapse": ("grpo", lambda step: {"entropy": 0.4 / step**2}, {}),
    "repetition": ("grpo", {}, {"samples": lambda: answers(lambda s, i: words(s, i) if s < 30 else LOOP)}),
    "clip-fraction": ("grpo", {"clip_ratio/region_mean": 0.5}, {}),
    "sampling-mismatch": ("grpo", {"sampling/sampling_logp_difference/mean": 1.4}, {}),
    "reward-fails": ("grpo", {"rewards/r/error_rate": 0.1}, {"samples": lambda: answers(words, errors={"r": "x"})}),
    "reward-slow": ("grpo", {"time/sampling": 1.0, "time/rewards": 9.0, "time/learning": 1.0}, {}),
    "length-explains-reward": (
        "grpo", {"reward": 0.9},
        {"samples": lambda: ({**one, "tokens": 20 + one["step"]} for one in answers(words, lambda s, i: s + i / 99))},
    ),
    "feature-explains-reward": (
        "grpo", {},
        {"samples": lambda: answers(lambda s, i: words(s, i) + "wow " * (s // 6), lambda s, i: s // 6)},
    ),
    "other-reward-falls": (
        "grpo", {},
        {"samples": lambda: (
            {**one, "rewards": {"a": one["step"] / 9, "b": -one["step"] / 99 + one["tokens"]}} for one in answers(words)
        )},
    ),
    "answers-identical": ("grpo", TIED, {"samples": lambda: answers(lambda s, i: f"Same {s}", lambda s, i: s % 5)}),
    "reward-not-applicable": ("grpo", {"reward": None}, {"samples": lambda: answers(words, lambda s, i: None)}),
    "reward-always-zero": ("grpo", {**TIED, "reward": 0.0}, {"samples": lambda: answers(words, lambda s, i: 0.0)}),
    "reward-always-full": ("grpo", {**TIED, "reward": 1.0}, {"samples": lambda: answers(words, lambda s, i: 1)}),
    "scores-tied": ("grpo", TIED, {"samples": lambda: answers(words, lambda s, i: s % 4 / 4)}),
    "template-not-learned": ("grpo", {}, {"samples": lambda: answers(lambda s, i: words(s, i) + "\n### Human: And?")}),
    "end-token-not-learned": ("grpo", CUT, {"samples": lambda: answers(lambda s, i: LOOP, finished=False)}),
    "limit-too-short": ("grpo", CUT, {"samples": lambda: answers(words, finished=False)}),
    "answers-cut": ("grpo", CUT, {}),
    "preference-stuck": ("dpo", {"loss": math.log(2), "rewards/margins": 1e-6}, {"options": {"learning_rate": 1e-7}}),
    "preferences-contradict": ("dpo", {"loss": 0.75, "rewards/accuracies": 0.5, "rewards/margins": 0.05}, {}),
    "chosen-falls": ("dpo", lambda step: {"logps/chosen": -20.0 - step}, {}),
    "margins-from-length": (
        "reward_model", {}, {"samples": lambda: pair_lines(lambda s, i, tokens: tokens[0] - 9.0)},
    ),
    "reward-model-at-chance": ("reward_model", {"loss": 0.7, "accuracy": 0.5, "margin": 0.01}, {}),
    "scores-saturated": ("reward_model", lambda step: {"margin": step, "accuracy": 1.0, "loss": 0.01}, {}),
    "value-unexplained": ("ppo", {"val/explained_variance": -2.0}, {}),
    "value-loss-explodes": ("ppo", lambda step: {"loss/value_avg": 0.1 if step < 20 else 50.0}, {}),
    "loss-diverges": ("sft", lambda step: {"loss": 1.0 if step < 20 else 5.0}, {}),
    "loss-zero": ("sft", lambda step: {"loss": 1.0 if step < 20 else 1e-6}, {}),
    "gradient-spikes": ("sft", lambda step: {"grad_norm": 90.0 if step % 7 == 0 else 1.0}, {}),
    "same-rows": (
        "grpo", {}, {"rows": 600, "samples": lambda: ({**one, "prompt": "p"} for one in answers(words, steps=80))},
    ),
    "memory-soon": (
        "sft", lambda step: {"memory/free_gb": 20 - step / 10, "memory/peak_gb": 2 + step / 10}, {"max_steps": 1000},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONLY)
def test_what_is_wrong_is_found_and_nothing_else(name):
    method, line, known = ONLY[name]
    samples = known.get("samples", list)()
    known = {key: value for key, value in known.items() if key != "samples"}
    assert found(method, line, 80 if name == "same-rows" else 60, samples, **known) == [name]


def test_held_out_scores_that_fall_while_the_reward_rises_are_found():
    run = reading.Summary(method="grpo")
    evaluations = [
        {"step": step, "scores": [{"r": (i % 5) / 5 - (step > 0) * 0.5} for i in range(32)]} for step in (0, 60)
    ]
    metrics = [{"step": s, **GRPO, "reward": s / 60 + s % 2 / 50} for s in range(1, 61)]
    lines = []
    catalog.replay(run, iter(metrics), iter(()), iter(evaluations), lines.append)
    assert [one["name"] for one in lines if one["level"] != "info"] == ["held-out-falls"]


def test_every_diagnosis_has_such_a_case():
    names = {one.name for one in catalog.DIAGNOSES if one.level != "info"}
    assert names == {*ONLY, "held-out-falls"}
    assert len(catalog.BY_NAME) == len(catalog.DIAGNOSES)


@pytest.mark.parametrize("method", CLEAN)
@pytest.mark.parametrize(("steps", "each"), [(3, 1), (60, 1), (200, 10)])
def test_nothing_is_found_where_nothing_is_wrong(method, steps, each):
    samples = {"grpo": lambda: answers(words, steps=steps), "ppo": lambda: answers(words, steps=steps)}
    assert found(method, {}, steps, samples.get(method, list)(), each, rows=1000, max_steps=steps) == []


@pytest.mark.parametrize("method", CLEAN)
def test_missing_keys_and_values_that_are_no_numbers_are_no_evidence(method):
    for key in CLEAN[method]:
        gone = {key: None} if key not in ("loss", "grad_norm", "kl") else {key: "nothing"}
        expected = ["reward-not-applicable"] if key == "reward" and method in ("grpo", "ppo") else []
        expected = ["nan"] if key in ("loss", "grad_norm", "kl") else expected
        if gone[key] is None:
            assert found(method, gone) == expected
        run = reading.Summary(method=method)
        clean = {name: value for name, value in CLEAN[method].items() if name != key}
        lines: list[dict] = []
        catalog.replay(run, iter({"step": s, **clean} for s in range(1, 61)), iter(()), iter(()), lines.append)
        assert [one for one in lines if one["level"] != "info"] == []


def test_noisy_small_groups_are_no_signal_only_if_all_of_them_tie():
    almost = [1.0] * 9 + [0.5] + [1.0] * 19
    assert found("grpo", lambda step: {"frac_reward_zero_std": almost[(step - 1) % 29], "reward": 0.4}) == []
    assert found("grpo", {"frac_reward_zero_std": 1.0}, 10, each=10) == ["scores-tied"]


# What looks like a fault in a run without one, by reports of other trainers and by our own.
USUAL = {
    "float16 halves its scale": ("sft", lambda s: {"grad_norm": None} if s < 6 else {}, {"options": {"dtype": "float16"}}),
    "a type that is not known": ("sft", lambda s: {"grad_norm": None} if s < 6 else {}, {}),
    "one estimate is large": ("grpo", lambda s: {"kl": 500.0} if s == 30 else {}, {}),
    "warm-up of GRPO": ("grpo", lambda s: {"kl": s**3 / 1e11, "learning_rate": s * 1e-8}, {"max_steps": 600}),
    "warm-up of DPO": (
        "dpo", lambda s: {"rewards/margins": s * 1e-4, "loss": 0.692, "learning_rate": s * 1e-8}, {"max_steps": 600},
    ),
    "a slow start of DPO": (
        "dpo", {"loss": 0.69, "rewards/accuracies": 0.5, "rewards/margins": 0.05},
        {"max_steps": 600, "samples": lambda: pair_lines(lambda s, i, tokens: (-1) ** i / 2)},
    ),
    "a short answer first, one a step": ("dpo", lambda s: {"logps/chosen": -20.0 - (s - 1) * 37 % 100}, {}),
    "easy rows first, one a step": ("sft", lambda s: {"loss": 0.6 + (s % 9 > 5)}, {}),
    "ten pairs a prompt": (
        "dpo", {}, {"rows": 2000, "samples": lambda: (
            {**one, "prompt": "p", "chosen": str(i)} for i, one in enumerate(pair_lines(lambda s, i, tokens: (-1) ** i))
        )},
    ),
    "the same last turn": (
        "grpo", {}, {"rows": 2000, "samples": lambda: (
            {**one, "prompt": [{"content": one["prompt"]}, {"content": "go on"}]} for one in answers(words, steps=80)
        )},
    ),
    "groups of two that tie for a while": (
        "grpo", lambda s: {"frac_reward_zero_std": float(s < 20)},
        {"samples": lambda: (one for i, one in enumerate(answers(words, lambda s, i: 0.0)) if i % 4 == 0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", USUAL)
def test_what_is_usual_is_no_fault(what):
    method, line, known = USUAL[what]
    samples = known.get("samples", list)()
    assert found(method, line, 60, samples, **{k: v for k, v in known.items() if k != "samples"}) == []


def test_a_gradient_that_stays_no_number_is_found():
    late = {"options": {"dtype": "float16"}}
    assert found("sft", lambda step: {"grad_norm": None} if step > 30 else {}, **late) == ["nan"]
    assert found("sft", lambda step: {"grad_norm": None} if step == 9 else {}, options={"dtype": "bfloat16"}) == ["nan"]


def test_a_cause_is_said_and_not_what_follows_from_it():
    zero = {**TIED, **CUT, "reward": 0.0}
    samples = answers(words, lambda s, i: 0.0, finished=False)
    assert found("grpo", zero, samples=samples) == ["limit-too-short"]


def test_of_two_that_explain_each_other_the_first_to_be_found_is_said():
    def line(explodes: int, away: int):
        return lambda step: {"loss/value_avg": 0.1 if step < explodes else 50.0, "kl": 0.01 if step < away else 3.0}

    assert found("ppo", line(20, 40)) == ["value-loss-explodes"]
    assert found("ppo", line(40, 20)) == ["kl-runaway"]
    assert found("ppo", line(20, 20)) == ["kl-runaway"]


def test_a_loss_about_zero_on_policy_is_information():
    lines: list[dict] = []
    metrics = ({"step": step, **GRPO, "loss": 1e-4 * (-1) ** step} for step in range(1, 20))
    catalog.replay(reading.Summary(method="grpo"), metrics, iter(()), iter(()), lines.append)
    assert [(one["name"], one["level"]) for one in lines] == [("loss-zero-on-policy", "info")]
    fault = {"loss": 0.0, "grad_norm": 0.0}
    assert found("grpo", fault) == ["loss-zero"]


def test_a_long_run_takes_bounded_memory():
    run = reading.Summary(method="grpo")
    for step in range(1, 701):
        run.add_metrics({"step": step, **GRPO})
        run.add_sample({"step": step, "prompt": "p", "completion": "x" * 9999, "rewards": {}})
    assert (len(run.first), len(run.newest), len(run.early), len(run.late)) == (20, 60, 256, 512)
    assert len(run.late[0].text) == reading.LONGEST
    assert run.lines == 700


def test_texts():
    assert texts.loops("诊断：感冒。建议休息。" * 6)
    assert not texts.loops("症状有发热、咳嗽，提示感冒。\n诊断：感冒\n依据：发热、咳嗽\n建议：多喝水，好好休息，复诊。")
    assert texts.next_turn("Fine.<|im_end|>\n<|im_start|>user") == "<|im_end|>"
    assert texts.next_turn("Rest.\n### Human: why?") == "### Human"
    assert texts.next_turn("The human: a user of ###") is None
    assert texts.features("wow! wow, <answer>建议</answer>") == {"!": 1, "wow": 2, "建议": 1}


def test_statistics():
    assert correlation([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1)
    assert correlation([1, 1, 1], [1, 2, 3]) == 0
    assert correlation([1, 2, 2, 4], [4, 3, 3, 1]) == pytest.approx(-1)
    # Means 1 and 3, variances 1 of two values each: a standard error of sqrt(1 + 1).
    assert change([0.0, 2.0], [2.0, 4.0]) == pytest.approx(2 / math.sqrt(2))
    assert change([1.0, 1.0], [1.0, 1.0]) == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["kl_runaway"], "there is no such diagnosis. Did you mean 'kl-runaway'"),
        (["kl-runaway", "anything"], "--stop-on anything: there is no such diagnosis"),
        (["preference-stuck"], "no effect with method grpo: it is found with dpo"),
        (["loss-zero-on-policy"], "it is information, and never stops a run"),
    ],
)
def test_names_that_stop_nothing_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        catalog.check_names(names, "grpo")
    catalog.check_names(["any", "kl-runaway"], "grpo")
    catalog.check_names(["kl-runaway"], "a_plugin's")


def test_every_sentence_has_its_chinese_one():
    for one in catalog.DIAGNOSES:
        for sentence in (one.says, one.remedy, one.threshold):
            assert say("zh", sentence) != sentence
        assert {*one.unless} <= {*catalog.BY_NAME}
        assert {*one.methods} <= {*ALL}


@pytest.mark.parametrize("lang", showing.PAGES)
def test_the_guide_has_the_catalog(lang):
    """Written anew by python -m rlhf_core.diagnoses.showing"""
    page = (Path(__file__).parent.parent / showing.PAGES[lang]).read_text(encoding="utf-8")
    assert page == showing.with_table(page, lang)
    assert page.count("\n| `") >= len(catalog.DIAGNOSES)


# The folder of a run, and other trainers' logs


def test_a_trainer_state_is_read_as_its_trainer_wrote_it(tmp_path):
    lines = [{"step": step, **{k: v for k, v in GRPO.items() if k != "loss"}, "loss": 0.0} for step in range(1, 31)]
    history = [{**line, "frac_reward_zero_std": 1.0, "rewards/r/mean": 0.0, "reward": 0.0} for line in lines]
    text = json.dumps({"log_history": history, "max_steps": 30})
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text if step == 10 else "{}")
    summary, lines = folder.diagnose(str(tmp_path))
    assert summary.method == "grpo"
    assert [(one["name"], one["command"]) for one in lines] == [("reward-always-zero", "")]  # no run of ours to score
    broken = tmp_path / "broken.json"
    for content, message in (
        ("{}", "no log_history"),
        ("[", "not JSON"),
        ('{"log_history": []}', "no line of training"),
        ('{"log_history": [{"step": 1%s, "loss": 1}]}' % ("0" * 40), "no line of training"),
    ):
        broken.write_text(content)
        with pytest.raises(UserError, match=message):
            folder.diagnose(str(broken))
    vast = [{**line, "loss": 10**400, "kl": 1e308, "reward": -1e308} for line in history]
    broken.write_text(json.dumps({"log_history": vast}))
    assert "nan" in [one["name"] for one in folder.diagnose(str(broken))[1]]
    with pytest.raises(UserError, match="neither metrics.jsonl"):
        folder.diagnose(str(tmp_path.parent))


# Real runs

ROWS = [{"prompt": f"Symptom {i}?"} for i in range(8)]
VALUES = {"method": "grpo", "num_generations": 4, "max_completion_length": 8, "max_steps": 14, "save_steps": 4}
REWARD = """
def tied(completions, prompts, **_): return [float(str(p).count("1")) for p in prompts]
def differs(completions, **_): return [i / 7 for i in range(len(completions))]
"""


@pytest.fixture
def rewarded(go):
    def start(name, **values):
        Path("rewards.py").write_text(REWARD)
        return go(reward=[f"rewards.py:{name}"], **values)

    return start


def said_in(run: Path) -> list[tuple[str, int]]:
    lines = (run / "diagnoses.jsonl").read_text().splitlines()
    return [(one["name"], one["step"]) for one in map(json.loads, lines)]


def test_a_run_says_it_once_and_the_logs_say_the_same(rewarded, said):
    code, run = rewarded("tied", mask_truncated_completions=False)
    assert code == 0
    names = [name for name, _ in said_in(run)]
    assert names[0] in ("limit-too-short", "end-token-not-learned", "scores-tied")
    assert len(names) == len({*names})
    assert sum(text.startswith(f"{names[0]}, step ") for text in said()) == 1
    _, lines = folder.diagnose(str(run))
    assert [one["name"] for one in lines if one["level"] != "info"] == names


def test_a_run_stops_where_it_is_told_to_and_goes_on_when_it_is_resumed(rewarded, capsys):
    code, run = rewarded("tied", stop_on=["any"])
    assert code == 1
    steps = [step for _, step in said_in(run)]
    shown = capsys.readouterr().out
    assert "--stop-on " in shown
    assert f"Resume when it is fixed: rlhf run --resume {run}" in shown
    assert (run / "checkpoints" / f"checkpoint-{steps[0] + 1}").is_dir()
    before = said_in(run)
    # As after kill -9: the log has a line of a step that comes again.
    with (run / "diagnoses.jsonl").open("a") as file:
        file.write(json.dumps({"name": "nan", "step": 14}) + "\n")
    code, run = rewarded("tied", resume=True, output_dir=str(run), stop_on=[before[0][0]])
    assert code == 0
    assert f"{before[0][0]} was found before, and does not stop the run again" in capsys.readouterr().out
    assert said_in(run)[: len(before)] == before
    assert all(one != other for (one, _), (other, _) in pairwise(sorted(said_in(run))))


def test_a_fault_of_ours_ends_the_diagnoses_and_not_the_run(rewarded, monkeypatch):
    looked = []

    def look(*_):
        looked.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(catalog, "look", look)
    code, run = rewarded("differs", max_steps=4)
    assert code == 0
    assert len(looked) == 1
    assert "it goes on without them" in (run / "run.log").read_text()
