"""The page of a run, report.html: what was trained, what came of it, its curves, and the answers that it learned from.

    rlhf report RUN
    rlhf report RUN RUN2      # curves over each other, settings that differ, before and after side by side

One file that needs no network. The run writes it now and then while it trains, and at its end.
"""
