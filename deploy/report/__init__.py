"""Reports: what a run folder tells, as one page for people."""
