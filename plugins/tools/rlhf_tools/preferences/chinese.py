"""The Chinese of what `rlhf preferences make`, `from-run` and `from-scores` say."""

CHINESE: dict[str, str] = {}
