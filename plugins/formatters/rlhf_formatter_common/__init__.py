"""The usual formats of training data, one formatter each.

| formatter             | columns                                                                                      |
|-----------------------|----------------------------------------------------------------------------------------------|
| `question_answer`     | `question`, `answer` (GSM8K's `reasoning #### result` too)                                   |
| `question_lists`      | `questions`: a list of a list of wordings, `answers`: a list (huatuo_encyclopedia_qa)        |
| `pubmedqa`            | `question`, `context`: a text or `{"contexts": […]}`, `long_answer`                          |
| `multiple_choice`     | `question`, the options (`options`, `choices`, `A`, …, `opa`, …, `option_a`, …), the answer  |
| `alpaca`              | `instruction`, `output`, optional `input`                                                    |
| `messages`            | `messages`: a list of `{"role", "content"}`                                                  |
| `sharegpt`            | `conversations`: a list of `{"from", "value"}`                                               |
| `huatuogpt`           | `data`: a list of `问：…` and `答：…`                                                        |
| `guanaco`             | `text`: a dialogue of `### Human: …` and `### Assistant: …`                                  |
| `text`                | `text`: plain text, all of which is learned                                                  |
| `oasst_tree`          | `prompt`: a tree of messages, `{"text", "role", "replies"}`                                  |
| `oasst_messages`      | `message_id`, `parent_id`, `role`, `text`: one message of a tree                             |
| `prompt`              | `prompt`: text or messages, optional `answer`                                                |
| `prompt_completion`   | `prompt`, `completion`: text or messages                                                     |
| `preference`          | `question`, `response_chosen`, `response_rejected`                                           |
| `prompt_preference`   | `prompt`, `chosen`, `rejected`: text or messages                                             |
| `implicit_preference` | `chosen`, `rejected`: messages that begin with the same prompt                               |
| `rejected_response`   | `messages` that end with the chosen answer, `rejected_response`: text or messages            |
| `response_preference` | `prompt`, `response`, `rejected_response`                                                    |
| `openai_preference`   | `input`: `{"messages": […]}`, `preferred_output`, `non_preferred_output`                     |
| `compared`            | `prompt`, two answers (`response_0`, `response_1`, …), which is better (`winner`, …)         |
| `ranked`              | `prompt`, `completions`: a list of `{"response", "score"}` or `{"answer", "rank"}`           |
| `sharegpt_preference` | `conversations`, `chosen`, `rejected`                                                        |
| `alpaca_preference`   | `instruction`, `chosen`, `rejected`, optional `input`                                        |
| `hh`                  | `chosen`, `rejected`: dialogues of `Human: …` and `Assistant: …` turns                       |
| `full_hh`             | `prompt` as such a dialogue, `chosen`, `rejected`                                            |
| `oasst_pairwise`      | `prompt` of `prompter: …` and `assistant: …` turns, `chosen`, `rejected`                     |

All take an optional `system`; those with a question, an instruction or a prompt in text take a `history` as well.
Columns may have other names in published data (`query`, `response`, …): `Formatter(names=…)` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_core import Example, Formatter, hookimpl
from rlhf_formatter_common.chat import (
    huatuogpt,
    is_plain,
    is_spoken,
    messages,
    prompt,
    prompt_completion,
    sharegpt,
    text,
)
from rlhf_formatter_common.choices import first_option, has_options, multiple_choice
from rlhf_formatter_common.dialogues import guanaco, is_guanaco, is_hh, is_oasst
from rlhf_formatter_common.marks import marks, unless_bad
from rlhf_formatter_common.preferences import (
    alpaca_preference,
    compared,
    full_hh,
    hh,
    implicit_preference,
    is_compared,
    is_ranked,
    oasst_pairwise,
    openai_preference,
    preference,
    prompt_preference,
    ranked,
    rejected_response,
    response_preference,
    safety,
    sharegpt_preference,
)
from rlhf_formatter_common.questions import alpaca, other_wordings, pubmedqa, question_answer, question_lists
from rlhf_formatter_common.reading import is_conversation
from rlhf_formatter_common.trees import gathered, is_message, is_tree, oasst_messages, oasst_tree

PAIR, RESPONSES = {"chosen", "rejected"}, {"prompt", "response", "rejected_response"}
# Other names of columns in published data. Data that has two of a column's names is not read by them.
PROMPT = ("question", "query", "problem", "input")
QUESTION = ("query", "ask", "open-ended verifiable question", "问题")
ANSWER = ("ground-true answer", "回答", "答案")
ONE = {"prompt": PROMPT, "completion": ("response", "output", "target", "solution", "long_answer", "reply", "content")}
PAIR_NAMES = {
    "chosen": ("response_chosen", "chosen_response", "chosen_answer", "preferred_response", "accepted"),
    "rejected": ("response_rejected", "rejected_response", "rejected_answer", "dispreferred_response"),
}


def one_answer(
    name: str,
    columns: set[str],
    convert: Callable[[Mapping[str, Any]], Example],
    matches: Callable[[Mapping[str, Any]], bool] | None = None,
    **names: Sequence[str],
) -> Formatter:
    """A format with one answer, which a column may call bad."""
    return Formatter(name, columns, unless_bad(convert), matches, names, marks)


def no_options(row: Mapping[str, Any]) -> bool:
    return not has_options(row)


def in_messages(row: Mapping[str, Any]) -> bool:
    return is_conversation(row["messages"])


@hookimpl
def rlhf_formatters():
    output = ("response", "completion", "answer", "输出")
    stem = ("query", "problem", "stem", "question_stem", "题目", "问题")
    asked = ("history", "context", "instruction", *PROMPT)
    return [
        one_answer(
            "question_answer", {"question", "answer"}, question_answer, no_options, question=QUESTION, answer=ANSWER
        ),
        Formatter("question_lists", {"questions", "answers"}, question_lists, decide=other_wordings),
        one_answer("pubmedqa", {"question", "context", "long_answer"}, pubmedqa),
        Formatter("multiple_choice", {"question"}, multiple_choice, has_options, {"question": stem}, first_option),
        one_answer(
            "alpaca", {"instruction", "output"}, alpaca, instruction=("指令",), output=output, input=("context", "输入")
        ),
        one_answer("messages", {"messages"}, messages, in_messages, messages=("conversation", "dialogue")),
        one_answer("sharegpt", {"conversations"}, sharegpt, lambda row: is_conversation(row["conversations"])),
        one_answer("huatuogpt", {"data"}, huatuogpt, lambda row: is_spoken(row["data"])),
        Formatter("guanaco", {"text"}, guanaco, lambda row: is_guanaco(row["text"])),
        Formatter("text", {"text"}, text, is_plain),
        Formatter("oasst_tree", {"prompt"}, oasst_tree, is_tree),
        Formatter("oasst_messages", {"message_id", "role", "text"}, oasst_messages, is_message, decide=gathered),
        Formatter("prompt", {"prompt"}, prompt, names={"prompt": ("problem",)}),
        one_answer("prompt_completion", {"prompt", "completion"}, prompt_completion, **ONE),
        Formatter("preference", {"question", "response_chosen", "response_rejected"}, preference),
        Formatter("prompt_preference", {"prompt", *PAIR}, prompt_preference, names={"prompt": PROMPT, **PAIR_NAMES}),
        Formatter("implicit_preference", PAIR, implicit_preference, lambda row: is_conversation(row["chosen"])),
        Formatter(
            "rejected_response",
            {"messages", "rejected_response"},
            rejected_response,
            in_messages,
            {"messages": ("conversations",), "rejected_response": ("rejected_messages", "rejected")},
        ),
        Formatter(
            "response_preference",
            {"prompt", "response", "rejected_response"},
            response_preference,
            names={"prompt": PROMPT},
        ),
        Formatter("openai_preference", {"input", "preferred_output", "non_preferred_output"}, openai_preference),
        Formatter("compared", {"prompt"}, compared, is_compared, {"prompt": asked}, safety),
        Formatter("ranked", {"prompt"}, ranked, is_ranked, {"prompt": asked}),
        Formatter("sharegpt_preference", {"conversations", *PAIR}, sharegpt_preference),
        Formatter("alpaca_preference", {"instruction", *PAIR}, alpaca_preference, names=PAIR_NAMES),
        Formatter("hh", PAIR, hh, lambda row: is_hh(row["chosen"])),
        Formatter("full_hh", {"prompt", *PAIR}, full_hh, lambda row: is_hh(row["prompt"])),
        Formatter("oasst_pairwise", {"prompt", *PAIR}, oasst_pairwise, lambda row: is_oasst(row["prompt"])),
    ]
