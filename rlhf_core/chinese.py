"""The Chinese sentences of `words.say`, by the English ones."""

CHINESE: dict[str, str] = {}
