"""What a judge says before a run: whether its endpoint answers, and what the run will cost."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_core import Messages, Planned, RunStopped, UserError
from rlhf_reward_judge.judging import Judge, JudgeRank

ANSWERS = ("Yes.", "No.", "It depends.")  # judged to measure a call


@dataclass(frozen=True)
class Plan:
    """The calls of a run, the tokens that one reads and writes on average, and how many there are for a prompt."""

    calls: int
    read: float
    written: float
    for_a_prompt: int


def before_run(judge: Judge, planned: Planned) -> str:
    """The estimate, by one call that is really made. Raises `UserError` if the endpoint does not answer, or if the
    budget does not even pay for one prompt's answers.
    """
    import asyncio

    from rlhf_core.endpoint import EndpointError

    try:
        plan = asyncio.run(_measured(judge, planned))
    except (EndpointError, TimeoutError) as error:  # after its retries
        raise UserError(f"the judge does not answer: {error}") from error
    except RunStopped as error:
        raise UserError(f"the budget does not pay for one call: {error}") from error
    _check_budget(judge, plan)
    line = f"{judge.rubric.name} by {judge.endpoint.model}: "
    return line + judge.endpoint.estimate(plan.calls, plan.read, plan.written) + _short_of(judge, plan)


async def _measured(judge: Judge, planned: Planned) -> Plan:
    from rlhf_reward_judge import prompt as prompts

    await judge.endpoint.check()
    calls, together, for_a_prompt = _calls(judge, planned)
    answers = [f"{number}. {ANSWERS[number % len(ANSWERS)]}" for number in range(together)]
    schema = prompts.schema_of_scores(judge.rubric)
    if planned.comparisons:
        schema = prompts.schema_of_comparison()
    elif isinstance(judge, JudgeRank):
        schema = prompts.schema_of_ranking()

    def messages(prompt: Messages) -> list[dict[str, str]]:
        question = prompts.question_of(prompt)
        if planned.comparisons:
            return prompts.to_compare(judge.rubric, question, *answers)
        if isinstance(judge, JudgeRank):
            return prompts.to_rank(judge.rubric, question, answers)
        return prompts.to_score(judge.rubric, question, *answers)

    asked = [messages(prompt) for prompt in planned.prompts or [[{"role": "user", "content": "?"}]]]
    reply = await judge.ask(asked[0], schema)
    sizes = [sum(len(turn["content"]) for turn in each) for each in asked]
    read = reply.prompt_tokens * sum(sizes) / len(sizes) / sizes[0]
    return Plan(calls, read + together * planned.tokens, reply.completion_tokens, for_a_prompt)


def _calls(judge: Judge, planned: Planned) -> tuple[int, int, int]:
    """(how many calls, the answers in each, the calls for one prompt)."""
    if planned.comparisons:
        return planned.comparisons, 2, 2
    group = max(1, planned.group)
    if isinstance(judge, JudgeRank):
        return -(-planned.answers // group), group, 1
    return planned.answers, 1, group


def _check_budget(judge: Judge, plan: Plan) -> None:
    """Raise `UserError` if the budget does not pay for the calls that the answers to one prompt take."""
    budget, calls = judge.endpoint.budget, plan.for_a_prompt
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
