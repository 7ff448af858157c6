/* floor: what a broadcast costs when nothing is between the sockets but the kernel. A yardstick, not a server.
 *
 *   floor PORT send    one send() per message and socket
 *   floor PORT join    all messages that arrived in one turn of the loop joined: one send() per turn and socket
 *
 * One epoll loop; every text frame of a client goes to every open connection. Loopback only. It checks nothing of
 * what RFC 6455 asks a server to check, has no Redis, no log and no channels.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define TURN (4 << 20) /* bytes of frames that one turn may join */

static const char REPLY[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"; /* for the one key that load sends */

typedef struct {
  int fd, upgraded, place;    /* place: index in `open_ones` */
  uint8_t *rest, *waiting;    /* half a frame read; what the kernel did not take */
  size_t rest_bytes, waiting_bytes;
} connection;

static connection **open_ones;
static int count, joining, poller;
static uint8_t joined[TURN];
static size_t joined_bytes;

static void forget(connection *c) {
  close(c->fd);
  c->fd = -1;
  if (!c->upgraded) return;
  open_ones[c->place] = open_ones[--count];
  open_ones[c->place]->place = c->place;
  c->upgraded = 0;
}

static void watch(connection *c, uint32_t events) {
  struct epoll_event e = {.events = events, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void put(connection *c, const uint8_t *bytes, size_t n) {
  ssize_t sent = c->waiting_bytes ? 0 : send(c->fd, bytes, n, MSG_NOSIGNAL);
  if (sent == (ssize_t)n) return;
  if (sent < 0) {
    if (errno != EAGAIN) return; /* epoll will say that it is gone */
    sent = 0;
  }
  size_t rest = n - (size_t)sent;
  c->waiting = realloc(c->waiting, c->waiting_bytes + rest);
  memcpy(c->waiting + c->waiting_bytes, bytes + sent, rest);
  c->waiting_bytes += rest;
  watch(c, EPOLLIN | EPOLLOUT);
}

static void put_waiting(connection *c) {
  ssize_t sent = send(c->fd, c->waiting, c->waiting_bytes, MSG_NOSIGNAL);
  if (sent < 0) return;
  c->waiting_bytes -= (size_t)sent;
  memmove(c->waiting, c->waiting + sent, c->waiting_bytes);
  if (!c->waiting_bytes) watch(c, EPOLLIN);
}

static void end_turn(void) {
  if (!joined_bytes) return;
  for (int i = 0; i < count; i++) put(open_ones[i], joined, joined_bytes);
  joined_bytes = 0;
}

static void fan_out(const uint8_t *payload, size_t n) {
  if (joined_bytes + n + 4 > TURN) end_turn();
  uint8_t *frame = joined + joined_bytes;
  size_t head = 2;
  frame[0] = 0x81;
  if (n < 126) {
    frame[1] = (uint8_t)n;
  } else {
    frame[1] = 126;
    frame[2] = (uint8_t)(n >> 8);
    frame[3] = (uint8_t)n;
    head = 4;
  }
  memcpy(frame + head, payload, n);
  joined_bytes += head + n;
  if (!joining) end_turn();
}

static void take(connection *c) {
  static uint8_t buffer[1 << 18];
  if (c->rest_bytes) memcpy(buffer, c->rest, c->rest_bytes);
  ssize_t got = recv(c->fd, buffer + c->rest_bytes, sizeof buffer - c->rest_bytes, 0);
  if (got <= 0) {
    if (got == 0 || errno != EAGAIN) forget(c);
    return;
  }
  size_t n = c->rest_bytes + (size_t)got, at = 0;
  if (!c->upgraded) { /* load sends its request in one piece and waits */
    put(c, (const uint8_t *)REPLY, sizeof REPLY - 1);
    c->upgraded = 1;
    c->place = count;
    open_ones[count++] = c;
    return;
  }
  while (n - at >= 8) {
    size_t length = buffer[at + 1] & 127, head = 2;
    if (length == 126) {
      length = (size_t)buffer[at + 2] << 8 | buffer[at + 3];
      head = 4;
    }
    if (n - at < head + 4 + length) break;
    uint8_t *mask = buffer + at + head, *payload = mask + 4;
    for (size_t i = 0; i < length; i++) payload[i] ^= mask[i & 3];
    if ((buffer[at] & 15) == 1) fan_out(payload, length);
    at += head + 4 + length;
  }
  c->rest_bytes = n - at;
  if (!c->rest_bytes) return;
  c->rest = realloc(c->rest, c->rest_bytes);
  memcpy(c->rest, buffer + at, c->rest_bytes);
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  joining = !strcmp(argv[2], "join");
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  open_ones = calloc(files.rlim_max, sizeof *open_ones);
  int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (!open_ones || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return 1;
  poller = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
  for (;;) {
    int n = epoll_wait(poller, events, 256, -1);
    for (int i = 0; i < n; i++) {
      connection *c = events[i].data.ptr;
      if (c) {
        if (c->waiting_bytes && events[i].events & EPOLLOUT) put_waiting(c);
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) take(c);
        continue;
      }
      int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
      if (fd < 0) continue;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      c = calloc(1, sizeof *c); /* never freed: another event of this turn may name it, and the run is short */
      c->fd = fd;
      struct epoll_event x = {.events = EPOLLIN, .data.ptr = c};
      epoll_ctl(poller, EPOLL_CTL_ADD, fd, &x);
    }
    end_turn();
  }
}
