"""Who else watches a run: trackers, traces, logs. Each fails alone, and none fails the run."""
