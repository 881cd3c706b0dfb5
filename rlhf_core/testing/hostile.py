"""Texts that a policy or a data set passes to a reward sooner or later."""

from __future__ import annotations

HUGE = 200_000  # characters

TEXTS: dict[str, str] = {
    "an empty text": "",
    "white space only": " \n\t\u3000\r\n",
    "200,000 characters of prose": ("The patient has fever and cough; 患者发热、咳嗽。\n" * HUGE)[:HUGE],
    "200,000 times one letter": "a" * HUGE,
    "200,000 digits": "7" * HUGE,
    "200,000 opening brackets": "(" * HUGE,
    "thousands of opening tags": ("<think><answer>" * HUGE)[:HUGE],
    "a tag that never closes": "<think>because <answer>42",
    "tags in the wrong order": "</answer><answer></think><think>",
    "broken LaTeX": r"\boxed{\frac{1}{ \sqrt{ $$ \left( \begin{x}",
    "broken JSON": '{"answer": [1, 2, {"',
    "a division by zero": r"\boxed{1/0}",
    "a number that no float holds": "1e999999",
    "not a number": "nan",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85\u2028\ufeff",
    "right-to-left text": "‏التشخيص: الالتهاب الرئوي‏ \u202eשלום\u202c",
    "emoji": "👩‍⚕️🤒🩺 → 👨‍👩‍👧‍👦 🇨🇳",
    "combining marks": "e" + "\u0301" * 500,
    "a lone surrogate": "answer \ud83d and \udc00",
}
