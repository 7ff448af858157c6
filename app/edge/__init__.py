"""Where requests come in: the WebSocket endpoint, REST, health and metrics, the page.

May import everything below `edge`. Values arrive as arguments: no edge reads a setting.
"""
