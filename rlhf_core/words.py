"""What reports and diagnoses say, in English or in Chinese: an English sentence is the key of its translation."""

from __future__ import annotations

import os
from typing import Any

from rlhf_core.errors import UserError

LANGUAGES = ("en", "zh")
VARIABLE = "RLHF_LANG"


def language(given: str | None = None) -> str:
    """`en` or `zh`: as `given` (of --lang), else by the variable RLHF_LANG, else English. Raises `UserError`."""
    value = given or os.environ.get(VARIABLE) or "en"
    found = value.lower().replace("-", "_").partition("_")[0].partition(".")[0]
    if found not in LANGUAGES:
        raise UserError(f"{'--lang' if given else VARIABLE} {value}: write en or zh")
    return found


def say(lang: str, sentence: str, **values: Any) -> str:
    """`sentence`, an English one, in `lang`; as it is where there is no other. `{name}` is filled in where values are
    given.
    """
    if lang == "zh":
        from rlhf_core.chinese import CHINESE
        from rlhf_core.diagnoses.chinese import DIAGNOSES

        sentence = DIAGNOSES.get(sentence) or CHINESE.get(sentence, sentence)
    return sentence.format(**values) if values else sentence
