"""Coordinates: samples, aggregates, steps the server optimiser, evaluates, keeps the run folder."""
