// Socket.IO 4 with the Redis adapter, as its documentation sets it up for performance: WebSocket only, no compression,
// the native mask of `bufferutil`, and the first HTTP request of each connection forgotten.
const { createServer } = require("node:http");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");
const { Server } = require("socket.io");

async function main() {
  const publisher = createClient({ url: process.env.REDIS_URL });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  const server = createServer();
  const io = new Server(server, {
    adapter: createAdapter(publisher, subscriber),
    transports: ["websocket"],
    perMessageDeflate: false,
    serveClient: false,
  });
  io.engine.on("connection", (socket) => {
    socket.request = null;
  });
  io.on("connection", (socket) => {
    socket.on("m", (text) => io.emit("m", text));
  });
  server.listen(Number(process.argv[2]), "127.0.0.1");
}

main();
