"""The usual formats of training data, one formatter each.

| formatter             | columns                                                                                      |
|-----------------------|----------------------------------------------------------------------------------------------|
| `question_answer`     | `question`, `answer` (GSM8K's `reasoning #### result` too)                                   |
| `multiple_choice`     | `question`, the options (`options`, `choices`, `A` to `E` or `opa` to `opd`) and the answer  |
| `alpaca`              | `instruction`, `output`, optional `input`                                                    |
| `messages`            | `messages`: a list of `{"role", "content"}`                                                  |
| `sharegpt`            | `conversations`: a list of `{"from", "value"}`                                               |
| `prompt`              | `prompt`: text or messages, optional `answer`                                                |
| `prompt_completion`   | `prompt`, `completion`: text or messages                                                     |
| `preference`          | `question`, `response_chosen`, `response_rejected`                                           |
| `prompt_preference`   | `prompt`, `chosen`, `rejected`: text or messages                                             |
| `implicit_preference` | `chosen`, `rejected`: messages that begin with the same prompt                               |
| `sharegpt_preference` | `conversations`, `chosen`, `rejected`                                                        |
| `alpaca_preference`   | `instruction`, `chosen`, `rejected`, optional `input`                                        |
| `hh`                  | `chosen`, `rejected`: dialogues of `Human: …` and `Assistant: …` turns                       |
| `full_hh`             | `prompt` as such a dialogue, `chosen`, `rejected`                                            |
| `oasst_pairwise`      | `prompt` of `prompter: …` and `assistant: …` turns, `chosen`, `rejected`                     |

All take an optional `system`; those built on a question or an instruction take a `history` as well.
Plain text without a prompt (a `text` column) is left out: there is no user message to answer.
"""

from __future__ import annotations

from rlhf_core import Formatter, hookimpl
from rlhf_formatter_common.chat import is_conversation, messages, prompt, prompt_completion, sharegpt
from rlhf_formatter_common.preferences import (
    alpaca_preference,
    full_hh,
    hh,
    implicit_preference,
    is_hh,
    is_oasst,
    oasst_pairwise,
    preference,
    prompt_preference,
    sharegpt_preference,
)
from rlhf_formatter_common.questions import alpaca, has_options, multiple_choice, question_answer

PAIR = {"chosen", "rejected"}


@hookimpl
def rlhf_formatters():
    return [
        Formatter("question_answer", {"question", "answer"}, question_answer, lambda row: not has_options(row)),
        Formatter("multiple_choice", {"question"}, multiple_choice, has_options),
        Formatter("alpaca", {"instruction", "output"}, alpaca),
        Formatter("messages", {"messages"}, messages, lambda row: is_conversation(row["messages"])),
        Formatter("sharegpt", {"conversations"}, sharegpt, lambda row: is_conversation(row["conversations"])),
        Formatter("prompt", {"prompt"}, prompt),
        Formatter("prompt_completion", {"prompt", "completion"}, prompt_completion),
        Formatter("preference", {"question", "response_chosen", "response_rejected"}, preference),
        Formatter("prompt_preference", {"prompt", *PAIR}, prompt_preference),
        Formatter("implicit_preference", PAIR, implicit_preference, lambda row: is_conversation(row["chosen"])),
        Formatter("sharegpt_preference", {"conversations", *PAIR}, sharegpt_preference),
        Formatter("alpaca_preference", {"instruction", *PAIR}, alpaca_preference),
        Formatter("hh", PAIR, hh, lambda row: is_hh(row["chosen"])),
        Formatter("full_hh", {"prompt", *PAIR}, full_hh, lambda row: is_hh(row["prompt"])),
        Formatter("oasst_pairwise", {"prompt", *PAIR}, oasst_pairwise, lambda row: is_oasst(row["prompt"])),
    ]
