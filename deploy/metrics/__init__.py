"""Numbers for monitoring systems: events of runs, servers and devices, as Prometheus reads them.

`catalog` says what there is, `rounds` and `device` turn events into changes, `series` keeps the
values, `exposition` and `endpoint` speak to Prometheus.
"""
