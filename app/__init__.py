"""Tocsin: a self-hosted real-time broadcast service.

Imports point down: `cli`, `serve`, `embedded` and `processes`, `main`, `settings` and `logs`, `notation`, `edge`,
`engine`, then `protocols`, `brokers` and `sockets` side by side, then `core`. import-linter holds this.
"""

__version__ = "0.1.0"
