"""What is live in one worker: channels and their groups, catching up, connections, the lease.

May import everything below: `protocols`, `brokers`, `sockets` (their contracts) and `core`. Knows no request and
no setting.
"""
