"""The wire formats, pure, one file each; PROTOCOL (docs/protocol.md) is their contract.

May import `app.core` only. A codec turns publications into messages of its format and the client's messages into
commands; it knows neither sockets nor channels.
"""
