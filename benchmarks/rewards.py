"""How long the rewards take that read every character: 10,000 completions of 500 characters, on one core.

    python -m benchmarks.rewards

The completions are answers of the built-in data, Chinese and English, one after the other up to 500 characters, in the
format; each has its own reference.
"""

from __future__ import annotations

import json
import time

from benchmarks.record import record
from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import bind

COUNT, LENGTH = 10_000, 500


def completions() -> tuple[list[str], list[str]]:
    lines = builtin.data_file("conversations", "train").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["messages"][-1]["content"] for line in lines]
    contents = [text.partition("<answer>\n")[2].partition("\n</answer>")[0] for text in answers]
    texts = []
    for i in range(COUNT):
        text, j = "", i
        while len(text) < LENGTH:
            text += contents[j % len(contents)] + "\n"
            j += 7
        texts.append("<think>\n" + text[: LENGTH - 40] + "\n</think>\n<answer>\n" + text[:20] + "\n</answer>")
    return texts, [contents[i % len(contents)] for i in range(COUNT)]


def main() -> None:
    texts, answers = completions()
    # All of it is the answer where terms are counted: what is thought is not judged.
    inside = [
        text.replace("<think>\n", "").replace("\n</think>\n<answer>\n", "").replace("\n</answer>", "") for text in texts
    ]
    results = {}
    for name in ("medical_format", "length", "medical_keyword"):
        reward = bind(RewardSpec.read(name), Catalog())
        given = inside if name == "medical_keyword" else texts
        started = time.process_time()
        scores = reward.call({"answer": answers}, {"completions": given})
        results[name] = {"seconds": round(time.process_time() - started, 2), "scored": len(scores)}
        print(name, results[name], flush=True)
    record("rewards", results)


if __name__ == "__main__":
    main()
