"""Engines for one machine: each implements Flower's `Grid` and carries messages to the ClientApp."""
