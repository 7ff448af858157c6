"""Crowds of clients, each the Python client as its users have it, that lose their connections: whether everybody is
made whole, and how fast and how evenly they return.

`scenes` has the scenarios, built on the load test of the command line. `pytest tests/crowds` runs them small;
`python -m tests.crowds` as they are meant, and prints their figures.
"""
