"""Trains: partitions the data, runs the local objective block by block."""
