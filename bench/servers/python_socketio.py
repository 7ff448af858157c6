"""python-socketio with its Redis manager, ASGI, as its documentation shows for several processes."""

import os

import socketio

server = socketio.AsyncServer(
    async_mode="asgi",
    client_manager=socketio.AsyncRedisManager(os.environ["REDIS_URL"]),
    transports=["websocket"],
)
app = socketio.ASGIApp(server)


@server.on("m")
async def message(sid, text):
    await server.emit("m", text)
