"""The proof, in the manner of Jepsen: faults are injected into a real service on a real Redis, everything that clients
tried and saw is recorded, and a checker judges the record.

`record` is what was seen, `checker` judges it, `clients` write it down, `scene` brings them together with a service;
`attendance` and `guests` are the same for presence. `delivery`, `store`, `failover`, `workers` and `presence` hold the
faults, each a function of a scene (with its seed and scale). `pytest tests/faults` runs each once and small, `make
faults` (`python -m tests.faults`) the counts of the table over several seeds.
"""
