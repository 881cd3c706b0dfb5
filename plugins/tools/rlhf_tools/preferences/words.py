"""What `rlhf preferences` says, in English or in Chinese: an English sentence is the key of its translation.

A module of translations is one of `TRANSLATIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_core import commands
from rlhf_tools.preferences.audit_chinese import AUDIT
from rlhf_tools.preferences.chinese import CHINESE
from rlhf_tools.preferences.label_chinese import LABEL

TRANSLATIONS: tuple[Mapping[str, str], ...] = (CHINESE, LABEL, AUDIT)


def say(lang: str, sentence: str, **values: Any) -> str:
    """`sentence`, an English one, in `lang`. `{name}` is filled in where values are given."""
    if lang == "zh":
        sentence = next((table[sentence] for table in TRANSLATIONS if sentence in table), sentence)
    return commands.say(lang, sentence, **values)
