"""What is in a data set: `rlhf data inspect` and `rlhf data validate`.

`reading` reads the rows as a run would, `tokens` counts their tokens, `texts` and `pairs` measure what they say,
`inspecting` puts it together, `validating` says what is wrong, and `report` shows it.
"""
