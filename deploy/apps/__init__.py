"""Runs somebody's Flower app, unmodified, on Ray actors of ours.

`app` reads the app's pyproject and `launch` starts a process of its own for it. There `driver`
calls the ServerApp with our `grid`; in each actor a `node` worker calls the ClientApp. In those
processes the app's modules must not meet ours: nothing of ours stays there under its name.
"""
