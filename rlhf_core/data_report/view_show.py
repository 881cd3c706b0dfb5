"""The examples of `rlhf data inspect`: in the terminal with colours, in a pipe with marks, and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from rich.text import Text

from rlhf_core.ui.page import document
from rlhf_core.ui.screen import Screen
from rlhf_core.ui.text import ShownPieces

HEAD, TAIL = 80, 40  # tokens that are shown of a longer span, in the terminal
PAGE = 10  # times as many on a page
SPANS = 12  # spans of one part, learned or not in turn, that are shown
OPENS, CLOSES, ENDS, BETWEEN = "«", "»", "■", "·"
READ, LEARNED = "dim", ("green", "cyan")  # learned tokens by turns, which shows where each ends
STYLE = """
h1, h2 { overflow-wrap: anywhere }
.tokens { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; font-family: ui-monospace, monospace;
  font-size: .875rem; color: var(--soft) }
dd { white-space: pre-wrap; font-family: ui-monospace, monospace }
.l, .m { color: var(--text); background: color-mix(in srgb, var(--good) 20%, transparent) }
.m { background: color-mix(in srgb, var(--good) 38%, transparent) }
.s { font-weight: 700 } .e { outline: 2px solid var(--good); border-radius: 2px; margin-right: 2px }
.gap { font-style: italic; font-family: system-ui, sans-serif }
.warning { border-left: 3px solid var(--bad); padding-left: .8rem }
"""

Token = Mapping[str, Any]


def shortened(tokens: Sequence[Token], times: int = 1) -> Iterator[Token | str]:
    """`tokens`, with words for those that are left out: in the middle of long spans, and spans between many."""
    head, tail = HEAD * times, TAIL * times
    spans = [list(span) for _, span in groupby(tokens, key=lambda token: token["learned"])]
    for number, span in enumerate(spans):
        if len(spans) > SPANS * times and SPANS * times // 2 <= number < len(spans) - SPANS * times // 2:
            if number == SPANS * times // 2:
                left = [token for one in spans[number : len(spans) - number] for token in one]
                learned = sum(count(token) for token in left if token["learned"])
                yield f"[… {sum(map(count, left)):,} tokens left out, {learned:,} of them learned …]"
        elif len(span) > head + tail + 1:
            yield from span[:head]
            yield f"[… {sum(map(count, span[head : len(span) - tail])):,} tokens left out …]"
            yield from span[len(span) - tail :]
        else:
            yield from span


def count(token: Token) -> int:
    return len(token["ids"])


def written(tokens: Sequence[Token], times: int = 1) -> Iterator[tuple[Token | None, str]]:
    """(token, what is shown of it) of those that are shown; None for words in place of others."""
    shown, within = ShownPieces(), False
    for token in shortened(tokens, times):
        if isinstance(token, str):
            yield None, token
            continue
        between = BETWEEN if within and token.get("split") else ""
        within = token.get("split", False)
        yield token, between + shown.shown(token["text"]).replace("\n", "↵\n")


def show(screen: Screen, examples: Sequence[Mapping[str, Any]]) -> None:
    console = screen.console
    colours = console.color_system is not None and not console.no_color
    for number, example in enumerate(examples, start=1):
        screen.say("")
        screen.say(title(number, example), "bold")
        if number == 1:
            console.print(legend(colours) + split(examples), soft_wrap=True)
        for part in example["parts"]:
            screen.say(f"{part['part']}: {amount(part)}")
            text = coloured(part["tokens"]) if colours else marked(part["tokens"])
            console.print(text, soft_wrap=True, end="" if text.plain.endswith("\n") else "\n")
        if example["answer_begins_after"]:
            screen.say(f"The answer begins after {example['answer_begins_after']!r}")
        for note in example["notes"]:
            screen.say(f"Warning: {note}", "yellow")
    if examples:
        screen.say("")


def title(number: int, example: Mapping[str, Any]) -> str:
    return f"Example {number}: {example['location']}{', the longest' * example['longest']}, as the model is given it"


def amount(part: Mapping[str, Any]) -> str:
    return f"{part['count']:,} tokens" + (f", {part['learned']:,} learned" if part["learned"] else "")


def split(examples: Sequence[Mapping[str, Any]]) -> str:
    """What is added to the legend, if some text reads like a special token."""
    parts = (part for example in examples for part in example["parts"])
    there = any(token.get("split") for part in parts for token in part["tokens"])
    return f", {BETWEEN} within text that reads like one special token" if there else ""


def legend(colours: bool) -> Text:
    if not colours:
        return Text(f"{OPENS}learned{CLOSES}, {ENDS} behind a token that ends a turn, ↵ a line's end")
    green, cyan = LEARNED
    return Text.assemble(
        ("learned, ", green), ("token by token", cyan), ", ", ("read", READ), ", ", ("special tokens", "bold"), ", ",
        ("a learned token that ends a turn", f"bold reverse {green}"), ", ↵ a line's end",
    )  # fmt: skip


def coloured(tokens: Sequence[Token]) -> Text:
    text, turn = Text(), 0
    for token, words in written(tokens):
        if token is None:
            text.append(words, "italic yellow")
            continue
        turn += 1
        style = LEARNED[turn % 2] if token["learned"] else READ
        if token.get("special"):
            style = f"bold {LEARNED[0]}" if token["learned"] else "bold"
        text.append(words, f"bold reverse {LEARNED[0]}" if token.get("ends") else style)
    return text


def marked(tokens: Sequence[Token]) -> Text:
    text, learned = "", False
    for token, words in written(tokens):
        if token is not None and token["learned"] != learned:
            learned = not learned
            text += OPENS if learned else CLOSES
        text += words + ENDS * (token is not None and token.get("ends", False))
    return Text(text + CLOSES * learned)


def render(result: Mapping[str, Any], lines: Iterable[tuple[str, str]]) -> str:
    """The whole result of `rlhf data inspect` as one HTML page, with `lines` (label, text). All text is escaped."""
    facts = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in lines)
    parts = [f"<dl>{facts}</dl>", *(f'<p class="warning">{escape(text)}</p>' for text in result["warnings"])]
    key = (
        '<span class="l">learned, </span><span class="m">token by token</span>, read, <span class="s">special tokens'
        '</span>, <span class="m s e">a learned token that ends a turn</span>, ↵ a line\'s end'
    )
    for number, example in enumerate(result["examples"], start=1):
        parts.append(f"<h2>{escape(title(number, example))}</h2>")
        parts.append(f'<p class="tokens">{key}{split(result["examples"])}</p>' if number == 1 else "")
        for part in example["parts"]:
            parts.append(f'<div class="soft">{escape(part["part"])}: {amount(part)}</div>')
            parts.append(f'<div class="text tokens">{"".join(_spans(part["tokens"]))}</div>')
        if example["answer_begins_after"]:
            parts.append(f"<p>The answer begins after <code>{escape(repr(example['answer_begins_after']))}</code></p>")
        parts += (f'<p class="warning">{escape(note)}</p>' for note in example["notes"])
    return document(f"{result['source']}: {result['total']:,} rows", parts, STYLE)


def _spans(tokens: Sequence[Token]) -> Iterator[str]:
    for turn, (token, words) in enumerate(written(tokens, PAGE)):
        if token is None:
            yield f'<span class="gap">{escape(words)}</span>'
            continue
        names = ["lm"[turn % 2]] if token["learned"] else []
        names += [name[0] for name in ("special", "ends") if token.get(name)]
        classes = f' class="{" ".join(names)}"' if names else ""
        ids = " ".join(map(str, token["ids"]))
        yield f'<span{classes} title="{ids}">{escape(words)}</span>'
