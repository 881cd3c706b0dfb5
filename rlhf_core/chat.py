"""A conversation with a model: answers are sampled, removed, sampled again, saved and scored.

`Chat` needs no terminal: it is given lines and writes pieces of text with a style. All turns are stored; the model
reads as many of the last ones as fit.

    rlhf chat RUN_OR_MODEL
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_core.data.chat_template import NO_SYSTEM, ChatTemplate
from rlhf_core.environment import Ended
from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.inputs import path_of
from rlhf_core.models.context import context_length
from rlhf_core.rewards.batch import RewardBatch, columns_left_out, columns_of
from rlhf_core.rewards.runtime import RewardRuntime
from rlhf_core.ui.screen import number

OTHER_HELP = (
    "A line that ends with \\ continues in the next one. // begins a message with /.\n"
    "Ctrl-C stops an answer; the part that was written stays."
)
# Shows (text, style=""), with no line end added. Styles: "thought", and for lines "line", "note" and "bold".
Write = Callable[..., None]
_COLUMN = re.compile(r"(?:^|[\s,]+)([A-Za-z_]\w*)=")


@dataclass(frozen=True)
class Settings:
    """How answers are sampled. Without a seed they differ each time."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 512
    greedy: bool = False
    seed: int | None = None


@dataclass
class Chat:
    """One conversation. `turns` are questions and answers in turn; `answer_ids` the tokens of the last answer."""

    model: Any
    template: ChatTemplate
    write: Write
    settings: Settings = Settings()
    system: str | None = None
    rewards: Mapping[str, RewardRuntime] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)
    answer_ids: list[list[int]] = field(default_factory=list)
    left_out: int = 0
    told: bool = False  # that the template has no place for a system message

    def _with_system(self, turns: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *turns]

    def do(self, line: str) -> bool:
        """Carry out a command or answer a question; False is the end. Raises `UserError`, with nothing changed."""
        text = line.strip()
        if not text.startswith("/") or text.startswith("//"):
            if text:
                self.ask(text.removeprefix("/"))
            return True
        name, argument = [*text.split(maxsplit=1), ""][:2]
        if name in ("/quit", "/exit"):
            return False
        if name not in COMMANDS:
            raise UserError(f"There is no command {name}.{did_you_mean(name, COMMANDS)} /help lists them.")
        COMMANDS[name][1](self, argument)
        return True

    def ask(self, question: str) -> None:
        """Answer `question`, and remember both unless Ctrl-C or an error comes before the first word."""
        turns = [*self.turns, {"role": "user", "content": question}]
        self._answer(turns, self.answer_ids, "Stopped before the first word; your question is removed.")

    def retry(self) -> None:
        """Sample the last answer again. Without a new one, the old one remains."""
        self._check_answered()
        restored = "Stopped before the first word; the previous answer is restored."
        self._answer(self.turns[:-1], self.answer_ids[:-1], restored)

    def undo(self) -> None:
        """Remove the last question and its answer."""
        self._check_answered()
        question = self.turns[-2]["content"]
        del self.turns[-2:], self.answer_ids[-1:]
        self.left_out = 0
        self.write(f"Removed: {_shortened(question)}\n", "note")

    def set_system(self, text: str) -> None:
        """Set the system message for all that follows; without text, show it."""
        if text:
            self.system = None if text in ("''", '""') else text
        self.write(f"System: {self.system}\n" if self.system else "No system message.\n", "note")

    def save(self, file: str) -> None:
        """Add the conversation to a JSONL file as one line, `{"messages": [...]}`."""
        self._check_answered()
        if not file:
            raise UserError("To which file? Write /save FILE.jsonl")
        path = path_of(file.strip("'\""), "/save")
        path = path.with_suffix(".jsonl") if not path.suffix else path
        if path.suffix != ".jsonl":
            raise UserError(f"{path}: the name has to end in .jsonl, or --data can't tell how to read it")
        line = json.dumps({"messages": self._with_system(self.turns)}, ensure_ascii=False).encode() + b"\n"
        try:
            before = path.read_bytes() if path.exists() else b""
            with path.open("ab") as stream:
                stream.write(line if not before or before.endswith(b"\n") else b"\n" + line)
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror}") from error
        self.write(f"Saved to {path}, which holds {len(before.splitlines()) + 1} now.\n", "note")

    def score(self, text: str) -> None:
        """Show the last answer's scores. `text` has the columns that its row would have in training."""
        columns = read_columns(text)
        self._check_answered()
        if not self.rewards:
            raise UserError("There are no rewards here. Start with some: rlhf chat … --reward NAME")
        for warning in columns_left_out(list(columns)):
            self.write(f"{warning}.\n", "note")
        prompt = self._with_system(self.turns[:-1])
        batch = RewardBatch([prompt], [[self.turns[-1]]], self.answer_ids[-1:], columns_of([columns]))
        width = max(map(len, self.rewards))
        for name, runtime in self.rewards.items():
            reward = runtime.rewards[0]
            if missing := reward.missing_columns(list(columns)):
                example = " ".join(f"{column}=…" for column in missing)
                result = f"needs the column{'s' * (len(missing) > 1)} {', '.join(missing)}: /reward {example}"
            else:
                column = runtime.evaluate(batch)[name]
                [score], [error] = column.scores, column.errors
                weight = "" if reward.weight == 1.0 else f"  (weight {reward.weight:g})"
                result = "does not apply" if score is None else number(score) + weight
                result = result if error is None else f"failed: {_shortened(error, 300)}"
            self.write(f"{name.ljust(width)}  {result}\n", "line")

    def help(self) -> None:
        for name, (what, _) in COMMANDS.items():
            self.write(f"{name:7}  {what}\n", "line")
        self.write(OTHER_HELP + "\n", "line")

    def _check_answered(self) -> None:
        if not self.turns:
            raise UserError("There is no answer yet.")

    def _answer(self, turns: list[dict[str, str]], answer_ids: list[list[int]], if_stopped: str) -> None:
        """Sample and show an answer to `turns`, and store both, unless it is stopped before the first word."""
        from rlhf_core.prefix import eos_token_ids

        prompt, eos = self._prompt(turns), eos_token_ids(self.model, self.template.tokenizer)
        opening = self.template.opening(self._with_system(turns))
        pieces = Pieces(self.template.decode, self.write, opening)
        try:
            self._generate(prompt, pieces, eos)
        except Ended:
            raise
        except KeyboardInterrupt:
            pieces.end()
            if not pieces.ids:
                self.write(if_stopped + "\n", "note")
                return
            self.write("\nStopped; the answer up to here stays.\n", "note")
        else:
            self.write("\n")
            if pieces.ids and pieces.ids[-1] not in eos:
                self.write(f"Cut off after {len(pieces.ids)} tokens; allow more with --max-new-tokens.\n", "note")
        answer = self.template.decode(pieces.ids)
        if not answer.strip():
            self.write("The answer is empty.\n", "note")
        self.turns = [*turns, {"role": "assistant", "content": opening + answer}]
        self.answer_ids = [*answer_ids, pieces.ids]

    def _generate(self, prompt: list[int], pieces: Pieces, eos: list[int]) -> None:
        import torch

        from rlhf_core.prefix import own_generation_config

        s = self.settings
        how = {} if s.greedy else {"temperature": s.temperature, "top_p": s.top_p, "top_k": 0}
        ids = torch.tensor([prompt], device=self.model.device)
        try:
            with own_generation_config(self.model):
                self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=min(s.max_new_tokens, self._max_tokens() - len(prompt)),
                    eos_token_id=eos,
                    pad_token_id=eos[0],
                    streamer=pieces,
                    do_sample=not s.greedy,
                    **how,
                )
        except torch.OutOfMemoryError as error:
            raise UserError("The device ran out of memory. /undo, or start with a smaller --max-new-tokens.") from error

    def _prompt(self, turns: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of as many of the last exchanges as fit with an answer, at least the last question."""
        limit, start = self._max_tokens(), 0
        ids = self._render(turns)
        while len(ids) + self.settings.max_new_tokens > limit and start + 2 < len(turns):
            start += 2
            ids = self._render(turns[start:])
        if len(ids) >= limit:
            raise UserError(f"That is {len(ids):,} tokens, and the model reads {limit:,} at most, its answer included.")
        if start > self.left_out:
            self.write(f"(The model reads {limit:,} tokens at most: it no longer sees the oldest {start}.)\n", "note")
        self.left_out = start
        return ids

    def _render(self, turns: Sequence[dict[str, str]]) -> list[int]:
        if self.system and not self.template.has_system and not self.told:
            self.told = True
            self.write(f"({self.template.called} {NO_SYSTEM}.)\n", "note")
        return self.template.prompt_ids(self._with_system(turns))

    def _max_tokens(self) -> int:
        """Tokens that the model is made to read; a very large number if it has no limit."""
        return context_length(self.model.config) or 2**31


class Pieces:
    """A streamer for `generate`: writes characters as soon as they are complete, and collects the token ids.

    What is between <think> and </think> has the style "thought". `opening` is what the prompt has opened of the answer.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], write: Write, opening: str = "") -> None:
        self.decode, self.write = decode, write
        self.ids: list[int] = []
        self._prompt_is_next, self._text = True, opening
        self._start = self._shown = 0  # decoded from, and shown up to: one token's text depends on the one before

    def put(self, value: Any) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            if self._text:
                self.write(self._text, "thought")
            return
        self.ids += value.flatten().tolist()
        self._show(complete=False)

    def end(self) -> None:
        self._show(complete=True)

    def _show(self, *, complete: bool) -> None:
        before, now = self.decode(self.ids[self._start : self._shown]), self.decode(self.ids[self._start :])
        if len(now) > len(before) and (complete or not now.endswith("\N{REPLACEMENT CHARACTER}")):
            self._start, self._shown = self._shown, len(self.ids)
            self._text += now[len(before) :]
            thinks = self._text.rfind("<think>") > self._text.rfind("</think>") or self._text.endswith("</think>")
            self.write(now[len(before) :], "thought" if thinks else "")


def read_columns(text: str) -> dict[str, Any]:
    """`answer=肺炎 keywords=["a", "b"]` as a row's columns. A value is text, or JSON if it begins with one of [ { "."""
    before, *pairs = (part.strip() for part in _COLUMN.split(text.strip()))
    if before:
        raise UserError(f"{before!r} is not column=value. Write it as in /reward answer=肺炎")
    columns: dict[str, Any] = dict(zip(pairs[::2], pairs[1::2], strict=True))
    for name, value in columns.items():
        if value.startswith(("[", "{", '"')):
            try:
                columns[name] = json.loads(value)
            except json.JSONDecodeError as error:
                raise UserError(f"{name}={value} is not valid JSON: {error.msg.lower()}") from error
    return columns


def _shortened(text: str, length: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


# name -> (its line of /help, what it does)
COMMANDS: Mapping[str, tuple[str, Callable[[Chat, str], None]]] = {
    "/retry": ("replace the last answer with another", lambda chat, _: chat.retry()),
    "/undo": ("remove the last question and its answer", lambda chat, _: chat.undo()),
    "/reward": ("the scores of the last answer; with columns: /reward answer=肺炎", Chat.score),
    "/system": ("show the system message; /system TEXT sets it, /system '' removes it", Chat.set_system),
    "/save": ("/save FILE.jsonl adds the conversation to a file for --data", Chat.save),
    "/help": ("this list", lambda chat, _: chat.help()),
    "/quit": ("leave the chat, as Ctrl-D does", lambda chat, _: None),
}
