"""Named diagnoses of a run, found in what it logs: why it does not learn, or learns something else.

    rlhf diagnose RUN

Each is a small pure function over a bounded summary of metrics and samples (`reading.Summary`), registered in
`catalog.DIAGNOSES`. Needs no torch.
"""
