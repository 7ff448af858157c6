"""The rules, pure: no I/O, no clock, no randomness (they are arguments).

Here live values, state machines and the table of errors. May import nothing of this project but `app.core`.
"""
