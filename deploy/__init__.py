"""Puts it somewhere: the command line, engines for one machine, export to edge formats."""
