"""What is in a data set, in numbers or in another format: `rlhf data`.

`reading` reads the rows as a run would, `tokens` counts their tokens, `texts`, `pairs` and `near` measure what they
say, `measuring` counts it. `inspecting`, `stats` and `validating` put it together; `report` and `charts` show it.
`converting` writes the rows in a format of `targets`, by `writing`.
"""
