"""What rewards give to existing completions, without a model and without torch: `rlhf score`.

answers.py      what is scored: completions, a run's samples, a data set's own answers
measuring.py    calls the rewards, and says what came out as plain data
statistics.py   distribution, correlation, signal within groups: pure functions on numbers
advice.py       what a practitioner must know before training with these rewards
report.py       the result in the terminal
page.py         the same as one HTML file
"""
