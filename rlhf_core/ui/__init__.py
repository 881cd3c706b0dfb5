"""What a person sees: the screen of a run, tables, HTML pages."""
