"""A device's warm trainer: torch imported, data loaded, messages answered one after another.

    ClientApp (a process a message)  --gRPC-->  service  --frames-->  worker (torch)

The service and the ClientApp import no torch. The worker is killed when a training hangs or takes
too much memory, and started anew.
"""
