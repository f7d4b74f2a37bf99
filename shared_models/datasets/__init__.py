"""Real data: what there is, where it comes from, how it is read and split."""
