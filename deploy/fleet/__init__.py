"""The command line of a fleet: its server, its clients, and the runs that are given to it."""
