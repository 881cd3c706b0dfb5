"""What a judge says before a run: whether its endpoint answers, and what the run will cost."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_core import Messages, Planned, RunStopped, UserError
from rlhf_reward_judge.judging import Judge, JudgeRank

ANSWERS = ("Yes.", "No.", "It depends.")  # judged to measure a call


@dataclass(frozen=True)
class Plan:
    """The calls of a run, and the tokens that one reads and writes on average."""

    calls: int
    read: float
    written: float


def before_run(judge: Judge, planned: Planned) -> str:
    """The estimate, by one call that is really made. Raises `UserError` if the endpoint does not answer, or if the
    budget does not even pay for one prompt's answers.
    """
    import asyncio

    try:
        plan = asyncio.run(_measured(judge, planned))
    except RunStopped as error:
        raise UserError(f"the budget does not pay for one call: {error}") from error
    _check_budget(judge, plan, max(1, planned.group) if not isinstance(judge, JudgeRank) else 1)
    line = f"{judge.rubric.name} by {judge.endpoint.model}: "
    return line + judge.endpoint.estimate(plan.calls, plan.read, plan.written) + _short_of(judge, plan)


async def _measured(judge: Judge, planned: Planned) -> Plan:
    from rlhf_reward_judge import prompt as prompts

    await judge.endpoint.check()
    ranks = isinstance(judge, JudgeRank)
    group = max(1, planned.group) if ranks else 1
    schema = prompts.schema_of_ranking() if ranks else prompts.schema_of_scores(judge.rubric)

    def messages(prompt: Messages) -> list[dict[str, str]]:
        question = prompts.question_of(prompt)
        if ranks:
            answers = [f"{number}. {ANSWERS[number % len(ANSWERS)]}" for number in range(group)]
            return prompts.to_rank(judge.rubric, question, answers)
        return prompts.to_score(judge.rubric, question, ANSWERS[0])

    asked = [messages(prompt) for prompt in planned.prompts or [[{"role": "user", "content": "?"}]]]
    reply = await judge.ask(asked[0], schema)
    sizes = [sum(len(turn["content"]) for turn in each) for each in asked]
    read = reply.prompt_tokens * sum(sizes) / len(sizes) / sizes[0]
    return Plan(-(-planned.answers // group), read + group * planned.tokens, reply.completion_tokens)


def _check_budget(judge: Judge, plan: Plan, calls: int) -> None:
    """Raise `UserError` if the budget does not pay for the `calls` that the answers to one prompt take."""
    budget = judge.endpoint.budget
    if budget.max_calls is not None and budget.max_calls < calls:
        raise UserError(f"max_calls={budget.max_calls} is less than the {calls} calls for the answers to one prompt")
    cost = 0.0 if budget.price is None else budget.price.of(calls * plan.read, calls * plan.written)
    if budget.max_cost is not None and budget.max_cost < cost:
        raise UserError(
            f"max_cost={budget.max_cost:g} is less than the answers to one prompt cost: about ${cost:.2g} for {calls} "
            f"calls of {plan.read:,.0f} tokens read and {plan.written:,.0f} written"
        )


def _short_of(judge: Judge, plan: Plan) -> str:
    """A warning where the budget ends before the run does."""
    budget = judge.endpoint.budget
    cost = 0.0 if budget.price is None else budget.price.of(plan.calls * plan.read, plan.calls * plan.written)
    limits = {"max_calls": (budget.max_calls, plan.calls), "max_cost": (budget.max_cost, cost)}
    short = {name: limit / needed for name, (limit, needed) in limits.items() if limit is not None and limit < needed}
    if not short:
        return ""
    name = min(short, key=lambda each: short[each])
    return f". Warning: {name}={limits[name][0]:g} stops the run after about {short[name]:.0%} of it"
