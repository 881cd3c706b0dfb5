"""What a person sees: the screen of a run, HTML pages."""
