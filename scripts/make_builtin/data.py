"""Questions and answers made from the table of conditions, the same for the same seed.

`write(folder)` makes the six shipped files. The held-out files are drawn first; what they use (a set of
symptoms of one condition, or the text of any other question) is then refused in the training files.
Left out on purpose: long answers and dialogues of more than two turns, which two CPU cores would
generate slowly.
"""

import json
import random
from collections.abc import Hashable, Iterator
from pathlib import Path

from scripts.make_builtin import phrases
from scripts.make_builtin.answer_format import formatted
from scripts.make_builtin.flaws import FLAWS
from scripts.make_builtin.items import DRAW, LANGUAGES, Item, diagnosis_of, draw_case, follow_up, item

SEED = 20260101
SIZES = {
    "heldout": {"prompts": 256, "preferences": 128, "conversations": 128},
    "train": {"prompts": 3000, "preferences": 3000, "conversations": 2000},
}


def dialogue(rng: random.Random, last: Item, two_turns: float = 0.1) -> list[Item]:
    """`last`, or with the given probability a diagnosis and a follow-up question to it."""
    if rng.random() >= two_turns:
        return [last]
    case = draw_case(rng)
    return [diagnosis_of(case, rng), follow_up(case, rng)]


def system_message(language: int, rng: random.Random) -> str:
    """Mostly the format reward's system prompt, otherwise another one."""
    if rng.random() < 0.7:
        return phrases.SYSTEM
    return rng.choice(phrases.OTHER_SYSTEMS)[language]


def prompt_row(rng: random.Random) -> tuple[dict, list[Item]]:
    one = item(rng)
    row = {
        "question": one.question,
        "answer": one.answer,
        "kind": one.kind,
        "language": LANGUAGES[one.language],
        "keywords": list(one.keywords),
    }
    return row, [one]


def conversation_row(rng: random.Random) -> tuple[dict, list[Item]]:
    turns = dialogue(rng, item(rng))
    messages = []
    if rng.random() < 0.1:
        messages.append({"role": "system", "content": system_message(turns[0].language, rng)})
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": formatted(turn.thought, turn.reply)})
    return {"messages": messages}, turns


def preference_row(rng: random.Random) -> tuple[dict, list[Item]]:
    flaw = rng.choice(list(FLAWS))
    kinds, degrade = FLAWS[flaw]
    last = DRAW[rng.choice(kinds)](rng) if kinds else item(rng)
    turns = [last] if kinds else dialogue(rng, last, 0.3)
    system = system_message(last.language, rng) if rng.random() < 0.1 else ""
    row = {
        "question": turns[-1].question,
        "response_chosen": formatted(turns[-1].thought, turns[-1].reply),
        "response_rejected": degrade(turns[-1], rng),
        "flaw": flaw,
        "system": system,
        "history": [[turn.question, formatted(turn.thought, turn.reply)] for turn in turns[:-1]],
    }
    return row, turns


ROWS = {"prompts": prompt_row, "preferences": preference_row, "conversations": conversation_row}


def rows(kind: str, size: int, rng: random.Random, refused: set[Hashable]) -> Iterator[tuple[dict, list[Item]]]:
    """`size` rows with distinct last questions, none of whose items is refused."""
    asked: set[str] = set()
    while len(asked) < size:
        row, turns = ROWS[kind](rng)
        if turns[-1].question in asked or any(turn.key in refused for turn in turns):
            continue
        asked.add(turns[-1].question)
        yield row, turns


def heldout_keys() -> set[Hashable]:
    return {turn.key for made in make("heldout", set()).values() for _, turns in made for turn in turns}


def make(split: str, refused: set[Hashable]) -> dict[str, list[tuple[dict, list[Item]]]]:
    return {
        kind: list(rows(kind, size, random.Random(f"{SEED} {split} {kind}"), refused))
        for kind, size in SIZES[split].items()
    }


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, refused in (("heldout", set()), ("train", heldout_keys())):
        for kind, made in make(split, refused).items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row, _ in made]
            (folder / f"{kind}.{split}.jsonl").write_bytes("".join(lines).encode())
