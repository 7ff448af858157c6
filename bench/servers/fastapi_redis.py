"""FastAPI + Redis Pub/Sub as most guides write it: one listener task, `gather` over `send_text`, publish per message.

`/ws` broadcasts to everybody; `/publish` is for publishers who need not hear anything (ingest).
"""

import asyncio
import os
from contextlib import asynccontextmanager

import redis.asyncio as redis
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

clients: set[WebSocket] = set()
store = redis.from_url(os.environ["REDIS_URL"], decode_responses=True)


async def listen() -> None:
    async with store.pubsub() as pubsub:
        await pubsub.subscribe("lobby")
        async for message in pubsub.listen():
            if message["type"] == "message":
                await asyncio.gather(*(c.send_text(message["data"]) for c in list(clients)), return_exceptions=True)


@asynccontextmanager
async def lifespan(app: FastAPI):
    task = asyncio.create_task(listen())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.websocket("/ws")
async def endpoint(websocket: WebSocket):
    await websocket.accept()
    clients.add(websocket)
    try:
        while True:
            await store.publish("lobby", await websocket.receive_text())
    except WebSocketDisconnect:
        pass
    finally:
        clients.discard(websocket)


@app.websocket("/publish")
async def publish(websocket: WebSocket):
    await websocket.accept()
    try:
        while True:
            await store.publish("lobby", await websocket.receive_text())
    except WebSocketDisconnect:
        pass
