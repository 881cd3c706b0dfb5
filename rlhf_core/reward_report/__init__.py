"""Rewards tried on existing completions, without a model and without torch: `rlhf score`.

`answers` reads the completions, `measuring` scores them with the help of `statistics`, and `report` shows the result.
"""
