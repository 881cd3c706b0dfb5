"""A conversation with a model: answers as they are sampled, taken back, tried again, saved and scored.

`Chat` knows no terminal: it gets lines and writes pieces of text with a style. What is said is kept whole; what the
model reads is as much of its end as fits.

    rlhf chat RUN_OR_MODEL
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.rewards.runtime import Batch, Column, RewardRuntime
from rlhf_core.rewards.spec import BoundReward

COMMANDS = {
    "/retry": "another answer in place of the last",
    "/undo": "take the last question and its answer back",
    "/reward": "the scores of the last answer; with columns: /reward answer=肺炎",
    "/system": "show the system message; /system TEXT sets it, /system '' removes it",
    "/save": "/save FILE.jsonl adds the conversation to a file that --data reads",
    "/help": "this list",
    "/quit": "end, as Ctrl-D does",
}
OTHER_HELP = (
    "A line that ends with \\ goes on in the next one. // begins a message with /.\n"
    "Ctrl-C stops an answer and keeps what is there."
)
_COLUMN = re.compile(r"(?:^|[\s,]+)([A-Za-z_]\w*)=")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character are decoded to


class Write(Protocol):
    """Shows text, its line ends included. `style` is "" or "thought" for a piece of an answer, "line", "note" or "bold"
    for whole lines.
    """

    def __call__(self, text: str, style: str = "") -> None: ...


@dataclass(frozen=True)
class Settings:
    """How answers are sampled. Without a seed they differ each time."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 512
    greedy: bool = False
    seed: int | None = None


class Pieces:
    """A streamer: writes what `generate` hands over as soon as it makes whole characters, and keeps the token ids."""

    def __init__(self, decode: Callable[[Sequence[int]], str], write: Write) -> None:
        self.decode = decode
        self.write = write
        self.ids: list[int] = []
        self._prompt_is_next = True
        self._start = self._shown = 0  # decoded from, and shown up to: one token's text depends on the one before

    def put(self, value: Any) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self.ids += value.flatten().tolist()
        self._show(whole=True)

    def end(self) -> None:
        self._show(whole=False)

    def _show(self, *, whole: bool) -> None:
        before, now = self.decode(self.ids[self._start : self._shown]), self.decode(self.ids[self._start :])
        if len(now) > len(before) and not (whole and now.endswith(_REPLACEMENT)):
            self._start, self._shown = self._shown, len(self.ids)
            self.write(now[len(before) :])


@dataclass
class Chat:
    """One conversation. `turns` are questions and answers in turn; `answer_ids` the tokens of the last answer."""

    model: Any
    tokenizer: Any
    write: Write
    settings: Settings = Settings()
    system: str | None = None
    rewards: Mapping[str, RewardRuntime] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)
    answer_ids: list[list[int]] = field(default_factory=list)
    left_out: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The system message, where there is one, and the turns."""
        return self._with_system(self.turns)

    def _with_system(self, turns: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *turns]

    def do(self, line: str) -> bool:
        """Carry out a command or answer a question; False is the end. Raises `UserError`, with nothing changed."""
        text = line.strip()
        if not text:
            return True
        if not text.startswith("/") or text.startswith("//"):
            self.ask(text.removeprefix("/") if text.startswith("//") else text)
            return True
        name, *rest = text.split(maxsplit=1)
        argument = rest[0] if rest else ""
        if name in ("/quit", "/exit"):
            return False
        actions = {
            "/retry": self.retry,
            "/undo": self.undo,
            "/reward": lambda: self.score(read_columns(argument)),
            "/system": lambda: self.set_system(argument),
            "/save": lambda: self.save(argument),
            "/help": self.help,
        }
        if name not in actions:
            raise UserError(f"There is no command {name}.{did_you_mean(name, COMMANDS)} /help lists them.")
        actions[name]()
        return True

    def ask(self, question: str) -> None:
        """Answer `question`. Without one word of an answer, by Ctrl-C or an error, the question is taken back."""
        self.turns.append({"role": "user", "content": question})
        try:
            answered = self._answer()
        except BaseException:
            self.turns.pop()
            raise
        if not answered:
            self.turns.pop()
            self.write("Stopped before the first word; the question is taken back.\n", "note")

    def retry(self) -> None:
        """Sample the last answer anew. The old one stays if nothing comes in its place."""
        self._check_answered()
        turn, ids = self.turns.pop(), self.answer_ids.pop()
        answered = False
        try:
            answered = self._answer()
        finally:
            if not answered:
                self.turns.append(turn)
                self.answer_ids.append(ids)
        if not answered:
            self.write("Stopped before the first word; the answer from before stays.\n", "note")

    def undo(self) -> None:
        """Take the last question and its answer back."""
        self._check_answered()
        question = self.turns[-2]["content"]
        del self.turns[-2:], self.answer_ids[-1:]
        self.left_out = 0
        self.write(f"Taken back: {_shortened(question)}\n", "note")

    def set_system(self, text: str) -> None:
        """Set the system message for all that follows; without text, show it."""
        if text:
            self.system = None if text in ("''", '""') else text
        self.write(f"System: {self.system}\n" if self.system else "No system message.\n", "note")

    def save(self, file: str) -> None:
        """Add the conversation to a JSONL file as one line, `{"messages": [...]}`."""
        self._check_answered()
        if not file:
            raise UserError("Where to? Write /save FILE.jsonl")
        path = Path(file.strip("'\"")).expanduser()
        path = path.with_suffix(".jsonl") if not path.suffix else path
        if path.suffix != ".jsonl":
            raise UserError(f"{path}: the name has to end in .jsonl, or --data can't tell how to read it")
        line = json.dumps({"messages": self.messages}, ensure_ascii=False).encode() + b"\n"
        try:
            before = path.read_bytes() if path.exists() else b""
            with path.open("ab") as stream:
                stream.write(line if not before or before.endswith(b"\n") else b"\n" + line)
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror}") from error
        self.write(f"Saved to {path}, which holds {len(before.splitlines()) + 1} now.\n", "note")

    def score(self, columns: Mapping[str, Any]) -> None:
        """Show what each reward gives the last answer. `columns` are those of the row it would have in training."""
        self._check_answered()
        if not self.rewards:
            raise UserError("There are no rewards here. Start with some: rlhf chat … --reward NAME")
        batch = Batch(
            [self._with_system(self.turns[:-1])],
            [[self.turns[-1]]],
            self.answer_ids[-1:],
            {name: [value] for name, value in columns.items()},
        )
        width = max(map(len, self.rewards))
        for name, runtime in self.rewards.items():
            reward = runtime.rewards[0]
            missing = reward.missing_columns(list(columns))
            said = _needs(missing) if missing else _outcome(runtime.evaluate(batch)[name], reward)
            self.write(f"{name.ljust(width)}  {said}\n", "line")

    def help(self) -> None:
        width = max(map(len, COMMANDS))
        for name, what in COMMANDS.items():
            self.write(f"{name.ljust(width)}  {what}\n", "line")
        self.write(OTHER_HELP + "\n", "line")

    def _check_answered(self) -> None:
        if not self.turns:
            raise UserError("Nothing has been said yet.")

    def _answer(self) -> bool:
        """Sample and show an answer to the last question; False if it was stopped before it began."""
        prompt = self._prompt()
        pieces = Pieces(self._decode, self._thoughtful())
        try:
            self._generate(prompt, pieces)
        except KeyboardInterrupt:
            pieces.end()
            if not pieces.ids:
                return False
            self.write("\nStopped; what is there is kept.\n", "note")
        else:
            self.write("\n")
            if pieces.ids[-1:] and pieces.ids[-1] not in self._ends():
                self.write(f"Cut off after {len(pieces.ids)} tokens; allow more with --max-new-tokens.\n", "note")
        answer = self._decode(pieces.ids)
        if not answer.strip():
            self.write("The answer is empty.\n", "note")
        self.turns.append({"role": "assistant", "content": answer})
        self.answer_ids.append(pieces.ids)
        return True

    def _generate(self, prompt: list[int], pieces: Pieces) -> None:
        import torch

        s, ends = self.settings, self._ends()
        how = {"temperature": s.temperature, "top_p": s.top_p, "top_k": 0}
        ids = torch.tensor([prompt], device=self.model.device)
        try:
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(s.max_new_tokens, self._context() - len(prompt)),
                eos_token_id=ends,
                pad_token_id=ends[0],
                streamer=pieces,
                do_sample=not s.greedy,
                **({} if s.greedy else how),
            )
        except torch.OutOfMemoryError as error:
            raise UserError("The device ran out of memory. /undo, or start with a smaller --max-new-tokens.") from error

    def _prompt(self) -> list[int]:
        """Token ids of as many of the last exchanges as leave room for an answer; of the last question at least."""
        limit, start = self._context(), 0
        ids = self._render(self.turns)
        while len(ids) + self.settings.max_new_tokens > limit and start + 2 < len(self.turns):
            start += 2
            ids = self._render(self.turns[start:])
        if len(ids) >= limit:
            raise UserError(f"That is {len(ids):,} tokens, and the model reads {limit:,} at most, its answer included.")
        if start > self.left_out:
            self.write(f"(The model reads {limit:,} tokens at most: it no longer sees the oldest {start}.)\n", "note")
        self.left_out = start
        return ids

    def _render(self, turns: Sequence[dict[str, str]]) -> list[int]:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                self._with_system(turns), add_generation_prompt=True, return_dict=False
            )
        except TemplateError as error:
            raise UserError(f"The model's chat template refuses this conversation: {error}") from error

    def _context(self) -> int:
        """Tokens that the model reads at most; of a model without such a limit, more than anyone writes."""
        # Probed: some models have no such setting, and others give it by another name, which this looks up.
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    def _ends(self) -> list[int]:
        from rlhf_core.prefix import eos_token_ids

        return eos_token_ids(self.model, self.tokenizer)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _thoughtful(self) -> Write:
        """`write`, with what stands between <think> and </think> in a style of its own."""
        said = ""

        def write(text: str, style: str = "") -> None:
            nonlocal said
            said += text
            thinks = said.rfind("<think>") > said.rfind("</think>") or text.endswith("</think>")
            self.write(text, "thought" if thinks else style)

        return write


def read_columns(text: str) -> dict[str, Any]:
    """`answer=肺炎 keywords=["a", "b"]` as a row's columns. A value is text, or JSON if it begins with one of [ { "."""
    before, *pairs = _COLUMN.split(text.strip())
    if before.strip():
        raise UserError(f"{before.strip()!r} is not column=value. Write it as in /reward answer=肺炎")
    return {name: _value(name, value.strip()) for name, value in zip(pairs[::2], pairs[1::2], strict=True)}


def _value(name: str, text: str) -> Any:
    if not text.startswith(("[", "{", '"')):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}={text} begins as JSON does, but {error.msg.lower()}") from error


def _needs(columns: Sequence[str]) -> str:
    example = " ".join(f"{name}=…" for name in columns)
    return f"needs the column{'s' * (len(columns) > 1)} {', '.join(columns)}: /reward {example}"


def _outcome(column: Column, reward: BoundReward) -> str:
    from rlhf_core.ui.screen import number

    weight = "" if reward.weight == 1.0 else f"  (weight {reward.weight:g})"
    if column.errors[0] is not None:
        return f"failed: {_shortened(column.errors[0], 300)}"
    return "does not apply" if column.scores[0] is None else number(column.scores[0]) + weight


def _shortened(text: str, length: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
