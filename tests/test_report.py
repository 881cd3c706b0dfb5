"""The page of a run: what is read of its folder, what the first screen says, and what a reader can do with it."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from rlhf_core import chinese
from rlhf_core.cli import rlhf
from rlhf_core.diagnoses.catalog import text_of
from rlhf_core.errors import UserError
from rlhf_core.report import metrics, summary
from rlhf_core.report.charts import charts
from rlhf_core.report.groups import groups_of
from rlhf_core.report.page import render
from rlhf_core.report.reading import read_run
from rlhf_core.report.samples import read_samples
from rlhf_core.report.writing import write_report
from rlhf_core.training import pages
from tests.browser import CHROMIUM, Browser

HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> &lt;b&gt; \x1b[2J \u202e"
THOUGHT = f"<think>why {HOSTILE}</think><answer>42</answer>"


def lines(file: Path, rows: list) -> None:
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def answers(step: int, prompt: str, scores: list, **more) -> list[dict]:
    """A group as GRPO writes it."""
    return [
        {"step": step, "prompt": [{"role": "user", "content": prompt}], "completion": f"{THOUGHT} {step}/{i}"}
        | {"rewards": {"fit": score, "odd <b>": 0.5}, "columns": {}, "tokens": 10 + i, "finished": i > 0}
        | {"advantage": None if score is None else score - 0.5}
        | more
        for i, score in enumerate(scores)
    ]


def pair(step: int, margin: float) -> dict:
    values = {"loss": 0.6, "rewards/margins": margin}
    return {"step": step, "prompt": "why?", "chosen": "good", "rejected": "bad", "tokens": [3, 2], "metrics": values}


@pytest.fixture
def made(tmp_path):
    """made("name", samples, …) writes the folder of a run of 12 steps and returns it."""

    def make(name: str = "one", samples: list | None = None, evaluation: dict | None = None, **config) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        given = {"method": "grpo", "reward": ["fit", "odd"], "model": f"m {HOSTILE}", "max_steps": 12, **config}
        (folder / "config.yaml").write_text(yaml.safe_dump(given))
        manifest = {"command": HOSTILE, "data": {"rows": 9, "held_out": 4, "source": [HOSTILE], "sha256": "ab"}}
        lines(
            folder / "manifest.json", [manifest | {"memory": {"estimated_bytes": 10**9, "resident_bytes": 2 * 10**9}}]
        )
        logged = [{"step": i, "time": 1.0, "reward": i / 12, "loss": -0.1, "kl": 0.0, HOSTILE: i} for i in range(1, 13)]
        lines(folder / "metrics.jsonl", logged)
        if samples is None:
            samples = [row for i in range(1, 13) for p in "ab" for row in answers(i, p, [i / 12, 0.25, 1.0])]
        lines(folder / "samples.jsonl", samples)
        prompts = [[{"role": "user", "content": f"{i} {HOSTILE}"}] for i in range(4)]
        one = {"rewards": {"fit": 0.25, "odd": 0.5}, "metrics": {}, "length": 9.0, "finished": 1.0, "prompts": prompts}
        one |= {"answers": [HOSTILE] * 4, "scores": [{"fit": s, "odd": 0.5} for s in (0, 0, 0.5, 0.5)]}
        after = {**one, "rewards": {"fit": 1.0, "odd": 0.5}, "scores": [{"fit": 1.0, "odd": 0.5}] * 4}
        lines(folder / "evaluation.json", [evaluation or {"before": one, "after": after}])
        found = {"name": "reward_hacked", "step": 7, "level": "error", "text": HOSTILE, "command": f"rlhf {HOSTILE}"}
        lines(folder / "diagnoses.jsonl", [found | {"evidence": [HOSTILE], "samples": answers(3, HOSTILE, [0.5])}])
        return folder

    return make


# Metrics


def test_lines_of_one_step_are_one_point_and_what_is_missing_stays_missing():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 3.0, "name": "x", "ok": True}]
    curves = metrics.read_curves([*rows, {"step": 2, "train_runtime": 9.0}, {"loss": 7.0}, {"step": 3, "loss": None}])
    plain = curves.plain()
    assert plain == {"steps": [1, 2, 3], "columns": {"loss": [2.0, 1.0], "eval_loss": [None, 3.0]}}


def test_a_long_run_has_bounded_curves_whose_mean_is_its_own():
    rows = [{"step": i, "loss": float(i), **({"eval": 5.0} if i == 3 else {})} for i in range(1, 65)]
    curves = metrics.read_curves(rows, points=8)
    assert curves.steps[-1] == 64
    assert len(curves.steps) == 8
    assert curves.columns["loss"] == [8 * i + 4.5 for i in range(8)]
    assert curves.columns["eval"][0] == 5.0
    assert len(curves.columns["eval"]) <= 8


# Samples


def test_answers_of_one_prompt_are_a_group(tmp_path):
    rows = [
        *answers(1, "a", [0.5, None]),
        *answers(1, "b", [1.0]),
        "{damaged\n",
        *answers(2, "a", [0.0], errors={"fit": "no"}, completion="half of a character: \ud83d"),
    ]
    lines(tmp_path / "s", rows)
    found = read_samples(tmp_path / "s")
    assert read_samples(tmp_path / "nothing").groups == []
    assert [(group[0], group[1], len(group[2])) for group in found.groups] == [(1, 0, 2), (1, 1, 1), (2, 0, 1)]
    assert (found.kind, found.names, found.total) == ("answers", ["fit", "odd <b>"], 3)
    text, scores, advantage, tokens, finished, errors = found.groups[0][2][1]
    assert (scores, advantage, tokens, finished, errors) == ([None, 0.5], None, 11, True, None)
    assert "\x1b" not in text
    assert "␛" in text
    assert found.groups[2][2][0][5] == {"fit": "no"}
    assert found.groups[2][2][0][0] == "half of a character: \\ud83d"


def test_what_is_notable_of_a_group_is_found_without_parsing_it():
    rows = answers(1, "a", [0.5, 0.0, 0.5], columns={"tokens": 7, "note": '", "tokens": 900,'}, errors={"}": "no"})
    rows[2] |= {"completion": 'half: ", "rewards": {"fit": 9.0}', "tokens": 40}
    earlier = {"step": 2, "prompt": "b", "completion": "x" * 50, "rewards": {"}": 1.0}}
    text = "".join(json.dumps(row) + "\n" for row in [*rows, earlier]).encode()
    first, second = groups_of(text)
    assert first.features == {"longest": 40.0, "best": 1.0, "worst": -0.5, "spread": 0.5, "errors": 3.0}
    assert (first.step, first.answers, second.step, second.answers) == (1, 3, 2, 1)
    assert second.features == {"longest": float(len(json.dumps(earlier)) + 1)}


def test_pairs_are_groups_of_their_own(tmp_path):
    lines(tmp_path / "s", [pair(1, 0.5), pair(1, -0.5)])
    found = read_samples(tmp_path / "s")
    assert (found.kind, found.names) == ("pairs", ["loss", "rewards/margins"])
    assert [[answer[0] for answer in group[2]] for group in found.groups] == [["good", "bad"]] * 2
    assert found.groups[1][2][0][1] == [0.6, -0.5]


def test_where_there_is_no_room_every_step_keeps_a_group_and_what_is_notable_stays(tmp_path):
    rows = [row for i in range(1, 101) for p in "abcdefgh" for row in answers(i, p, [0.1, 0.2])]
    rows += [
        *answers(50, "best", [9.0, 8.0]),
        *answers(60, "failed", [0.1], errors={"fit": "no"}),
        *answers(70, "tie", [0.3, 0.3]),
    ]
    rows.sort(key=lambda row: row["step"])
    lines(tmp_path / "s", rows)
    whole = (tmp_path / "s").stat().st_size
    found = read_samples(tmp_path / "s", whole // 10)
    assert found.total == 803
    assert {group[0] for group in found.groups} == set(range(1, 101))
    asked = {found.prompts[group[1]][0][1] for group in found.groups}
    assert {"best", "failed", "tie"} <= asked
    assert sum(len(answer[0]) for group in found.groups for answer in group[2]) < whole // 9


def test_long_answers_lose_their_middle_before_steps_go(tmp_path):
    rows = [row | {"completion": "x" * 5000 + "end"} for i in range(1, 41) for row in answers(i, "a", [0.1, 0.2])]
    lines(tmp_path / "s", rows)
    found = read_samples(tmp_path / "s", 40_000)
    assert len(found.groups) == 40
    text = found.groups[0][2][0][0]
    assert text.startswith("xxx")
    assert text.endswith("end")
    assert "[…]" in text
    assert len(text) <= 40_000 / 80 + 10
    assert len(read_samples(tmp_path / "s", 4_000).groups) < 40


def test_long_prompts_are_cut_too(tmp_path):
    rows = [row for i in range(1, 41) for row in answers(i, f"{i}" + "y" * 5000, [0.1, 0.2])]
    lines(tmp_path / "s", rows)
    found = read_samples(tmp_path / "s", 40_000)
    assert len(found.prompts) == len(found.groups) == 40
    assert sum(len(turn[1]) for prompt in found.prompts for turn in prompt) <= 0.3 * 40_000 + 40 * 10


# The first screen


def change(run, name):
    return next(one for one in summary.changes(run) if one.name == name)


def test_the_interval_is_of_differences_on_the_same_prompt(made):
    run = read_run(made())
    fit = change(run, "fit")
    assert (fit.before, fit.after, fit.difference) == (0.25, 1.0, 0.75)
    assert 0.5 <= fit.low < 0.75 < fit.high <= 1.0
    assert fit.verdict == "better"
    odd = change(run, "odd")
    assert (odd.low, odd.high, odd.verdict) == (0.0, 0.0, "even")
    total = change(run, "reward")
    assert (total.before, total.after) == (0.75, 1.5)
    assert summary.main_change(summary.changes(run), True) == total


def test_the_sum_of_rewards_is_weighted(made):
    run = read_run(made(reward=["fit:weight=2", "odd"]))
    assert (change(run, "reward").before, change(run, "reward").after) == (1.0, 2.5)


def test_the_best_group_is_that_of_the_weighted_sum():
    text = "".join(json.dumps(row) + "\n" for row in answers(1, "a", [0.5, 1.0])).encode()
    assert next(groups_of(text, (("fit", -1.0), ("odd <b>", 3.0)))).features["best"] == 1.0  # -0.5 + 3 * 0.5


def of_pairs(before: dict, after: dict) -> dict:
    one = {"rewards": {}, "prompts": [], "answers": [], "scores": [], "length": None, "finished": None}
    return {"before": {**one, "metrics": before}, "after": {**one, "metrics": after}}


def test_the_accuracy_of_pairs_has_the_interval_of_a_share(made):
    run = read_run(made(evaluation=of_pairs({"accuracy": 0.5, "loss": 1.0}, {"accuracy": 1.0, "loss": 0.5}), reward=[]))
    found = change(run, "accuracy")  # 4 pairs: (2 + 1) / 6 and (4 + 1) / 6
    half = 1.96 * ((1 / 2 * 1 / 2 + 5 / 6 * 1 / 6) / 6) ** 0.5
    assert (found.low, found.high) == pytest.approx((1 / 3 - half, 1 / 3 + half))
    assert change(run, "loss").low is None


def test_the_accuracy_before_dpo_is_that_of_no_preference_and_is_left_out(made):
    zero = {"rewards/accuracies": 0.0, "rewards/margins": 0.0}
    run = read_run(made(evaluation=of_pairs(zero, {"rewards/accuracies": 0.75, "rewards/margins": 2.0}), reward=[]))
    found = change(run, "rewards/accuracies")
    assert found.before is None
    assert 0.28 < found.low < 0.75 < found.high < 1.0
    assert found.verdict == "even"  # four pairs are too few to tell it from chance
    assert "is 0.750 (95% interval" in summary.verdict(run, summary.changes(run), "en")[0]


def test_information_is_nothing_wrong_and_a_diagnosis_is_told_in_the_readers_language(made):
    folder = made()
    lines(folder / "diagnoses.jsonl", [{"name": "loss-zero-on-policy", "step": 3, "level": "info", "text": "x"}])
    run = read_run(folder)
    assert summary.verdict(run, [], "en")[1] == "Nothing in its metrics and samples looks wrong."
    assert text_of("loss-zero-on-policy", "zh") in html.unescape(render([run], "zh"))


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        ((1.0, 1.0, 1.0, 1.0), "rose from 0.250 to 1.000 (+0.750; 95% interval"),
        ((-1.0, -1.0, -1.0, -1.0), "fell from 0.250 to -1.000 (−1.250; 95% interval"),
        ((0.5, 0.0, 0.0, 0.5), "did not clearly change: 0.250 before, 0.250 after"),
    ],
)
def test_the_verdict(made, after, sentence):
    folder = made(reward=["fit"])
    found = json.loads((folder / "evaluation.json").read_text())
    for stage, scores in (("before", (0.0, 0.0, 0.5, 0.5)), ("after", after)):
        found[stage] |= {"rewards": {"fit": sum(scores) / 4}, "scores": [{"fit": score} for score in scores]}
    lines(folder / "evaluation.json", [found])
    run = read_run(folder)
    outcome, health = summary.verdict(run, summary.changes(run), "en")
    assert sentence in outcome
    assert health == "Something looks wrong: reward_hacked (see below)."


def test_a_run_is_shown_with_its_tags(made):
    known = dict(summary.facts(read_run(made(tag=["a", "b"], model="x" * 9000)), "en"))
    assert known["tags"] == "a, b"
    assert all(len(value) < 1100 for value in known.values())


def test_a_run_that_is_not_at_its_end_tells_where_it_is(made):
    folder = made(evaluation={"before": None, "after": None})
    (folder / "diagnoses.jsonl").unlink()
    run = read_run(folder)
    outcome, health = summary.verdict(run, summary.changes(run), "en")
    assert outcome == "Stopped at step 12 of 12: the reward went from 0.292 to 0.792 in training."
    assert health == "Nothing in its metrics and samples looks wrong."
    assert "the run is not at its end" in render([run], "en")


def test_a_run_of_which_nothing_but_its_configuration_is_left(made):
    folder = made()
    for file in folder.iterdir():
        if file.name != "config.yaml":
            file.write_bytes(b'{"half')
    page = render([read_run(folder)], "en")
    assert "Step 0 of 12: nothing is logged yet." in page
    assert "looks wrong" not in page  # there is nothing to judge by


@pytest.mark.parametrize(
    ("logged", "ended", "sentence"),
    [
        ([0.5], None, "Stopped at step 1 of 12: the reward is 0.500 in training."),
        ([0.1, 0.2, 0.6], {"state": "done"}, "Step 3 of 12: the reward went from 0.100 to 0.600 in training."),
        ([], {"state": "failed"}, "Failed at step 0 of 12: nothing is logged yet."),
        (
            [0.1, 0.2],
            {"state": "stopped", "reason": "no-signal"},
            "Stopped at step 2 of 12 (no-signal): the reward went from 0.100 to 0.200 in training.",
        ),
    ],
)
def test_where_a_run_without_an_evaluation_is(made, logged, ended, sentence):
    folder = made(evaluation={"before": None})
    lines(folder / "metrics.jsonl", [{"step": i, "reward": value} for i, value in enumerate(logged, 1)])
    lines(folder / "manifest.json", [{"ended": ended}])
    run = read_run(folder)
    assert summary.verdict(run, summary.changes(run), "en")[0] == sentence


def test_a_run_that_is_made_longer_is_not_judged_by_its_end_before(made):
    folder = made()
    lines(folder / "evaluations.jsonl", [{"step": 0, "answers": []}, {"step": 8, "answers": []}])
    run = read_run(folder)
    assert summary.verdict(run, summary.changes(run), "en")[0].startswith("Stopped at step 12 of 12: ")
    assert "<th>step 8</th>" in render([run], "en")  # where the newest evaluation is
    lines(folder / "manifest.json", [{"ended": {"state": "done"}}])  # whose best checkpoint is of step 8
    run = read_run(folder)
    assert summary.verdict(run, summary.changes(run), "en")[0].startswith("On held-out rows ")


def test_a_reward_may_be_called_as_a_metric_is(made):
    run = read_run(made(evaluation=of_rewards({"length": 0.2}, {"length": 0.9})))
    assert [row.label("en") for row in summary.changes(run)] == ["length", "length in tokens", "ended before the limit"]
    assert change(run, "length").verdict == "better"


def of_rewards(before: dict, after: dict) -> dict:
    one = {"metrics": {}, "answers": ["x"] * 3, "length": 9.0, "finished": 1.0}
    stages = {"before": before, "after": after}
    return {name: {**one, "rewards": rewards, "scores": [rewards] * 3} for name, rewards in stages.items()}


WRONG = [None, "1", 3, [1], {"a": None}, float("nan"), 10**400, [None, {"rewards": [1], "prompt": [1, {"role": "x"}]}]]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_damaged_run_has_a_page(made, wrong):
    """Whatever stands where something else should."""
    parts = ("command", "data", "memory", "versions", "plugins", "ended", "max_steps")
    evaluation = dict.fromkeys(("metrics", "rewards", "prompts", "answers", "scores", "length", "finished"), wrong)
    samples = [
        row | {name: wrong} for name in ("rewards", "tokens", "errors", "prompt") for row in answers(1, "p", [1])
    ]
    samples += [pair(1, 0.5) | {name: wrong} for name in ("tokens", "metrics")]
    folder = made(evaluation={"before": evaluation, "after": evaluation}, samples=samples)
    config = dict.fromkeys(("method", "model", "reward", "data", "tag", "max_steps", "name"), wrong)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines(folder / "manifest.json", [dict.fromkeys(parts, wrong)])
    deep = '{"step": 1, "reward": ' + "[" * 50_000
    lines(folder / "metrics.jsonl", [deep, {"step": 1, "reward": wrong}, {"step": wrong, "loss": 1.0}])
    lines(folder / "evaluations.jsonl", [{"step": 1, **evaluation}])
    lines(folder / "diagnoses.jsonl", [{"name": "x", "evidence": wrong, "samples": wrong, "text": wrong}])
    page = render([read_run(folder)], "en")
    assert "NaN" not in json.dumps([packed(page, name) for name in ("curves", "answers")])


# The page


def packed(page: str, name: str):
    found = re.search(f'<script type="application/json" id="{name}">([^<]*)</script>', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(found)) if name != "page" else found)


def test_nothing_of_a_model_or_a_file_is_markup(made):
    page = render([read_run(made())], "en")
    body = re.sub(r"<(script|style)\b[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    assert "<img" not in body
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert len(re.findall("<script", page)) == 5  # three of data, two of ours
    assert "script-src 'sha256-" in page
    assert "unsafe" not in page.split("</head>")[0]


def test_every_sentence_of_the_page_has_a_chinese_one(made, monkeypatch):
    missing = []

    class Asked(dict):
        def get(self, sentence, default=None):
            missing.extend([sentence] * (sentence not in self))
            return super().get(sentence, default)

    monkeypatch.setattr(chinese, "CHINESE", Asked(chinese.CHINESE))
    one, two = read_run(made("one")), read_run(made("two", evaluation={"before": None}))
    page = render([one, two], "zh") + render([two], "zh") + render([one], "zh")
    for title, says, _ in summary_charts():
        for sentence in (title, says):
            assert not sentence or sentence in chinese.CHINESE
    assert set(summary.LABELS.values()) <= chinese.CHINESE.keys()
    assert missing == []
    assert '<html lang="zh">' in page
    assert "结论" in page


def test_a_single_rewards_mean_and_spread_are_shown_once():
    names = ["reward", "reward_std", "rewards/a/mean", "rewards/a/std", "eval_rewards/a/mean"]
    assert [chart["names"] for chart in charts(names, [], "en")] == [["reward"], ["reward_std"]]
    assert len(charts([*names, "rewards/b/mean", "rewards/b/std"], [], "en")) == 4
    assert len(charts(names[2:], [], "en")) == 2  # of a trainer that logs no sum


def summary_charts():
    from rlhf_core.report.charts import CHARTS

    return CHARTS


def test_several_runs_show_what_differs_and_before_and_after(made):
    page = render([read_run(made("one")), read_run(made("two", learning_rate=0.5))], "en")
    assert "<code>learning_rate</code></td><td>–</td><td>0.5</td>" in page
    assert page.count("0.250 → 1.000") == 2
    assert packed(page, "page")["runs"] == ["one", "two"]


def test_the_command(made, tmp_path, monkeypatch):
    folder = made()
    say = CliRunner().invoke(rlhf, ["report", str(folder), "--lang", "zh"], standalone_mode=False)
    assert say.exception is None
    assert "结论" in (folder / "report.html").read_text()
    monkeypatch.chdir(tmp_path)
    assert write_report([folder, made("two")]) == Path("report.html")
    with pytest.raises(UserError, match="is given twice"):
        write_report([folder, f"{folder}/."])
    for wrong, message in (([tmp_path], "no folder of a run"), ([folder, "nowhere"], "nowhere is no folder of a run")):
        with pytest.raises(UserError, match=message):
            write_report(wrong)
    with pytest.raises(UserError, match="--lang xx: write en or zh"):
        write_report([folder], lang="xx")
    (folder / "report.html").write_text("mine")
    with pytest.raises(UserError, match="is no page of this command"):
        write_report([folder])


def test_a_page_that_would_be_too_large_has_fewer_answers(made, monkeypatch):
    folder = made()
    monkeypatch.setattr("rlhf_core.report.writing.BYTES", (folder / "samples.jsonl").stat().st_size)
    before = write_report([folder]).stat().st_size
    monkeypatch.setattr("rlhf_core.report.writing.LARGEST", before - 1)
    assert write_report([folder]).stat().st_size < before


def test_pages_are_written_now_and_then_and_a_fault_of_theirs_ends_nothing(made, monkeypatch, caplog):
    folder, now = made(), [100.0]
    monkeypatch.setattr(pages.time, "monotonic", lambda: now[0])
    written = []

    def write(_):
        now[0] += 2.0
        written.append(now[0])
        raise ZeroDivisionError

    monkeypatch.setattr(pages, "write_report", write)
    callback, state = pages.Pages(folder), type("State", (), {"is_world_process_zero": True})()
    for _ in range(1200):
        callback.on_step_end(None, state, None)
        now[0] += 1.0
    assert written == [132.0, 1134.0]  # the first after half a minute, and 2 s take 1,000 s
    assert "the page of the run is not written" in caplog.text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)])
def test_a_reader_clicks_through_it(made, tmp_path, width, dark):
    samples = [row for i in range(1, 13) for p in (HOSTILE, "b") for row in answers(i, p, [i / 12, 0.25, 1.0])]
    samples += answers(12, "tie", [0.5, 0.5]) + answers(12, "failed", [None], errors={"fit": HOSTILE})
    browser = Browser(tmp_path / "profile")
    try:
        file = write_report([made(samples=samples)])
        browser.open(file, width, dark=dark)
        assert browser.run("document.title") == "one"
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.run("document.getElementById('charts').scrollIntoView()")
        browser.wait_for("document.querySelectorAll('.uplot').length > 0")
        count = "document.querySelectorAll('.group').length"
        assert browser.run(count) == 4  # of the last step
        assert browser.run("document.querySelectorAll('.answer').length") == 9
        assert browser.run("document.querySelector('.think').textContent").endswith("␛[2J \\u202e")
        assert browser.run("document.querySelector('.final').lastChild.textContent") == "42"
        browser.run("document.getElementById('before').click()")
        assert browser.run("document.getElementById('at').textContent") == "step 11"
        assert browser.run(count) == 2
        choose = "((id, value) => { const s = document.getElementById(id); s.value = value; s.dispatchEvent(new Event('change')); })"
        for value, groups in (("ties", 1), ("errors", 1), ("best", 8)):
            browser.run(f"{choose}('filter', '{value}')")
            assert browser.run(count) == groups, value
        browser.run("document.getElementById('more').click()")
        assert browser.run(count) == 26
        browser.run("document.querySelector('.group button').click()")  # the same prompt over time
        assert browser.run(count) == 1
        assert browser.run("document.querySelectorAll('.answer').length") == 36
        assert browser.run("document.querySelector('.answer b').textContent") == "step 1"
        browser.run(f"{choose}('source', 'held')")
        assert browser.run("document.querySelector('.group header b').textContent") == "step 12"
        browser.run(
            "(() => { const s = document.getElementById('smoothing'); s.value = 0.9; s.dispatchEvent(new Event('input')); })()"
        )
        browser.run("document.getElementById('log').click()")
        assert browser.run("document.title") == "one"
        assert browser.problems() == []
        if dark:
            _names_of_every_object(made, browser, width)
    finally:
        browser.close()


def _names_of_every_object(made, browser, width):
    """Rewards and metrics of one run alone that JavaScript has on every object, and a very long one."""
    names = ["__proto__", "constructor", "x" * 900, "\u202e"]
    scores = dict.fromkeys(names, 0.5)
    folder = made("names", samples=answers(1, "p", [1.0], rewards=scores), evaluation=of_rewards(scores, scores))
    lines(folder / "metrics.jsonl", [{"step": 1, "reward": float("nan"), **scores}, {"step": 2, **scores}])
    browser.open(write_report([folder, made("other")], str(folder.parent / "both.html")), width)
    browser.run("document.getElementById('others').open = true")
    browser.run("document.getElementById('others').scrollIntoView()")
    browser.wait_for("document.querySelectorAll('#others .uplot').length >= 4")
    assert "constructor 0.5" in browser.run("document.querySelector('.answer').textContent")
    assert "\\u202e 0.5" in browser.run("document.querySelector('.answer').textContent")
    assert browser.run("document.documentElement.scrollWidth") <= width
    # A step by the keyboard: the control has the focus afterwards, too.
    browser.run(
        "(() => { const s = document.getElementById('run'); s.value = 1; s.focus(); s.dispatchEvent(new Event('change')); })()"
    )
    assert browser.run("document.activeElement.id") == "run"
    browser.run("(() => { const s = document.getElementById('before'); s.focus(); s.click(); })()")
    assert browser.run("document.activeElement.id") == "before"
    assert browser.problems() == []
