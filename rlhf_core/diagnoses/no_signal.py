"""No signal: every group ties, and why; answers that don't end, and why."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core.diagnoses.finding import AGAIN, ERROR, SAMPLING, WARNING, Diagnosis, Finding, mean, number, series
from rlhf_core.diagnoses.reading import Answer, Summary

PATIENCE = 10  # steps from the start in which every group ties
LATER = 30  # steps in a row, once some group did not tie
LEAST, SURE = 8, 64  # answers at the end of a run, and before: if all of 64 get 0, under 5 % get more
SAME = 0.9  # share of groups
CUT = 0.8  # share of answers
GOES_ON = 0.5  # of the cut answers
TURNS = 0.3  # of all answers

IDENTICAL, ZERO, FULL, TIED = "answers-identical", "reward-always-zero", "reward-always-full", "scores-tied"


def tied(run: Summary) -> list[tuple[int, float]]:
    """The share of groups without a spread of scores, in the steps in which it was 1 throughout; [] for fewer."""
    key = "frac_reward_zero_std"
    from_the_start = all(line.get(key) == 1 for line in run.first)
    points = run.window(key, PATIENCE if from_the_start else LATER)
    return points if points and all(value == 1 for _, value in points) else []


def kind(run: Summary) -> str | None:
    """Which kind of tie it is, if every group ties."""
    points = tied(run)
    answers = [answer for answer in run.late if points and answer.step > run.since(points)]
    if not points or any(answer.failed for answer in answers) or 0 < len(answers) < (LEAST if run.ended else SURE):
        return None
    if not answers:
        return _kind_by_metrics(run)
    groups = [group for group in run.groups() if group[0].step > run.since(points)]
    identical = sum(len({answer.text for answer in group}) == 1 for group in groups)
    if run.method != "ppo" and groups and identical >= SAME * len(groups):
        return IDENTICAL
    return _kind_by_scores([score for answer in answers for score in answer.scores.values()])


def _kind_by_scores(scores: Sequence[float]) -> str | None:
    if not scores:
        return None
    if all(score == 0 for score in scores):
        return ZERO
    return FULL if all(score == 1 for score in scores) else TIED


def _kind_by_metrics(run: Summary) -> str | None:
    """Where no answers were kept: by the means of the rewards, where each is the same in all lines."""
    names = [key for key in run.newest[-1] if key.startswith("rewards/") and key.endswith("/mean")]
    scores = [value for name in names or ["reward"] for value in run.values(name)]
    return _kind_by_scores(scores)


def _tie(name: str):
    def check(run: Summary) -> Finding | None:
        if kind(run) != name:
            return None
        lines = [series("frac_reward_zero_std", tied(run))]
        if reward := run.values("reward"):
            lines.append(f"reward: {number(min(reward))} to {number(max(reward))}")
        return Finding(lines, samples=[answer.as_sample() for answer in list(run.late)[-3:]])

    return check


def unscored(run: Summary) -> Finding | None:
    """The mean reward is no number, since no reward gave a score; not because one failed."""
    lines = [line for line in run.newest if "reward" in line]
    steps = sum(line["step"] - line["from"] for line in lines)
    none = all(line["reward"] is None or line["reward"] != line["reward"] for line in lines)
    if not lines or not none or any(answer.scores or answer.failed for answer in run.late):
        return None
    if steps < PATIENCE and not (run.ended and len(lines) > 1):
        return None
    return Finding(
        [f"reward: None (step 1-{run.step})"], samples=[answer.as_sample() for answer in list(run.late)[-3:]]
    )


def cut(run: Summary) -> list[tuple[int, float]]:
    """The share of answers cut at the limit, if it is most of them."""
    points = run.window("completions/clipped_ratio", PATIENCE)
    return points if points and mean(points) > CUT else []


def why_cut(run: Summary) -> tuple[str | None, list[Answer]]:
    """(the name of what is wrong, answers that show it): by what the newest answers look like."""
    points = cut(run)
    start = run.since(points)
    answers = [answer for answer in run.late if answer.finished is not True and points and answer.step > start]
    if not points or not answers:
        return ("answers-cut" if points and not run.late else None), []
    on = [answer for answer in answers if answer.goes_on]
    if len(on) >= GOES_ON * len(answers):
        return "end-token-not-learned", on
    return "limit-too-short", [answer for answer in answers if not answer.goes_on]


def _cut(name: str):
    def check(run: Summary) -> Finding | None:
        found, answers = why_cut(run)
        if found != name:
            return None
        lines = [series("completions/clipped_ratio", cut(run))]
        if answers:
            lines.append(f"goes on after an end: {sum(a.goes_on for a in run.late)} / {len(run.late)}")
        given = run.option("max_completion_length")
        limit = given if isinstance(given, int) and 0 < given < 1e9 else 256
        samples = [answer.as_sample() for answer in answers[-3:]]
        return Finding(lines, {"limit": 2 * limit}, samples)

    return check


def template(run: Summary) -> Finding | None:
    found = [answer for answer in run.late if answer.next_turn]
    if len(run.late) < 4 * LEAST or len(found) < TURNS * len(run.late):
        return None
    turns = ", ".join(sorted({str(answer.next_turn) for answer in found})[:3])
    line = f"{len(found)} / {len(run.late)}: {turns} (step {run.late[0].step}-{run.late[-1].step})"
    return Finding([line], samples=[answer.as_sample() for answer in found[-3:]])


_TIES = "`frac_reward_zero_std` = 1 in the first 10 steps, or in 30 in a row, of 64 answers or more; "
_AXOLOTL = "axolotl, training_stability (1.0 on every step is a red flag)"
_END = "axolotl, training_stability (`clipped_ratio` > 0.8)"

DIAGNOSES = [
    Diagnosis(
        "answers-identical", ERROR, ("grpo",), _tie(IDENTICAL),
        "All answers to a prompt are the same text, so their scores can't differ and nothing is learned.",
        "Sample with more variety: a temperature of 1, no top-k of 1, or an earlier checkpoint.",
        f"{AGAIN} --temperature 1 --top-k 0 --top-p 1",
        f"{_TIES}in 90 % of the groups all texts are equal", _AXOLOTL,
        unless=("entropy-collapse", "repetition", "kl-runaway"),
    ),
    Diagnosis(
        "reward-not-applicable", ERROR, SAMPLING, unscored,
        "No reward gave any answer a score: each returned None, which means that it does not apply.",
        "Look at the columns that the reward reads, and try it on the run's answers.",
        "rlhf score {run}",
        "`reward` is no number in 10 steps, and no reward failed",
        "TRL, GRPO: a reward returns None where it does not apply",
        unless=("reward-fails",),
    ),
    Diagnosis(
        "reward-always-zero", ERROR, SAMPLING, _tie(ZERO),
        "Every answer got 0, so there is nothing to learn from: the task is too hard for the model, or the reward "
        "never finds what it looks for.",
        "Try the reward on answers that deserve more; then give easier prompts, partial credit, or supervised "
        "fine-tuning first.",
        "rlhf score {run}",
        f"{_TIES}every score is 0", "axolotl, training_stability (a reward that stays at 0)",
        unless=(
            *("end-token-not-learned", "limit-too-short", "answers-cut", "template-not-learned"),
            *("entropy-collapse", "repetition", "kl-runaway"),
        ),
    ),
    Diagnosis(
        "reward-always-full", WARNING, SAMPLING, _tie(FULL),
        "Every answer got the full score of 1, so there is nothing left to learn from these prompts.",
        "Give harder prompts or a stricter reward; or stop here, if this was the goal.",
        "rlhf score {run}",
        f"{_TIES}every score is 1", "DAPO (https://arxiv.org/abs/2503.14476), 3.2: groups with accuracy 1 are left out",
    ),
    Diagnosis(
        "scores-tied", ERROR, SAMPLING, _tie(TIED),
        "No two answers to a prompt were scored differently, although the answers differ, so there is nothing to "
        "learn from.",
        "Use a reward that looks at the answer, not only at the prompt, and that has more steps than all or nothing.",
        "rlhf score {run}",
        f"{_TIES}scores are neither all 0 nor all 1", _AXOLOTL,
    ),
    Diagnosis(
        "template-not-learned", ERROR, SAMPLING, template,
        "Answers go on with another turn or with markers of a chat template as text: the model has not learned this "
        "template, or its stop token is another one.",
        "Use the template that the model was trained with, or teach it by supervised fine-tuning first.",
        "rlhf run --method sft --model {model}",
        "30 % of at least 32 answers have a marker of a turn (ChatML, Llama, Gemma, Zephyr, Vicuna, Alpaca)",
        "our own: 0.1 % in the clean runs",
    ),
    Diagnosis(
        "end-token-not-learned", ERROR, SAMPLING, _cut("end-token-not-learned"),
        "Answers are cut at the limit after they have come to an end and gone on, or round in a loop: they don't end "
        "because the model has not learned "
        "its end token, so more tokens won't help.",
        "Teach it to end by supervised fine-tuning on whole answers, and check with rlhf data inspect that each ends.",
        "rlhf run --method sft --model {model}",
        "`completions/clipped_ratio` > 0.8 over 10 steps, and half of the cut answers repeat an end or themselves",
        _END,
        unless=("template-not-learned", "repetition", "kl-runaway"),
    ),
    Diagnosis(
        "limit-too-short", ERROR, SAMPLING, _cut("limit-too-short"),
        "Most answers are cut at the limit in the middle of what they say: the limit is too short.",
        "Allow more tokens, or ask for shorter answers.",
        f"{AGAIN} --max-completion-length {{limit}}",
        "`completions/clipped_ratio` > 0.8 over 10 steps, and fewer than half of them do so", _END,
        unless=("template-not-learned", "kl-runaway", "length-explains-reward"),
    ),
    Diagnosis(
        "answers-cut", ERROR, SAMPLING, _cut("answers-cut"),
        "Most answers are cut at the limit; whether it is too short or the end token is not learned, their texts would "
        "tell, which were not kept.",
        "Read some answers: if they break off, allow more tokens; if they go round, teach the model to end them.",
        f"{AGAIN} --max-completion-length {{limit}}",
        "`completions/clipped_ratio` > 0.8 over 10 steps, without samples", _END,
    ),
]  # fmt: skip
