"""Coordinates: samples cohorts, aggregates, steps the server optimiser, evaluates, keeps the run folder."""
