"""The benchmark: this service beside others on one machine, in one run, in turn. `python -m bench --help`.

Nothing here is imported by the service, and nothing here imports it: contenders are processes behind a port.
"""
