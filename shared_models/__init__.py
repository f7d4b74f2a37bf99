"""What server and clients must agree on: tasks, models, data, the algebra of updates, the wire."""
