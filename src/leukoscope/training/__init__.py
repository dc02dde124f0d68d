"""Training: the configuration, one run from cells to release, and what it leaves in its run folder."""
