"""Engines for one machine: each is a Flower `Grid` that carries messages to the ClientApp."""
