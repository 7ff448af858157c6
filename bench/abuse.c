/* abuse: one client that abuses a server as fast as it may, until it is told to stop (SIGTERM).
 *
 *   abuse -p PORT -k KIND
 *
 * KIND is `messages` (a plain socket publishes 120 bytes into the channel of all the others, without a pause), `apart`
 * (the same into a channel of its own), `pings` (ping frames), `bytes` (fragments of one byte) or `handshakes` (SLOW
 * connections that send a byte of a request's head every TRICKLE seconds; RAMP new ones a second, and each that is ended
 * is opened again). A socket that is closed is opened again after RETURN seconds. At the end it prints one JSON line:
 *
 *   offered   frames (bytes of heads) that the kernel took from it
 *   taken     frames of them that the server has answered: echoes, pongs (connections that it ended)
 *   opened    connections
 *   cpu       seconds of CPU of this process
 *
 * One thread, so one core at most. It sends whenever the kernel takes something and reads whatever comes: what holds it
 * back is the server alone.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SLOW 2000
#define RAMP 500.0
#define TRICKLE 0.5
#define RETURN 0.1
#define WHOLE 1000      /* fragments of one message */
#define TEXT 120        /* bytes of a message */
#define LIMIT 60        /* seconds after which it ends by itself */

static const char *HEAD =
    "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

static volatile sig_atomic_t stopped;
static int port, poller;
static const char *kind;
static uint64_t offered, taken, opened;

static void stop(int number) { stopped = number; }

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int begin(void *mark, uint32_t events) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct epoll_event e = {.events = events, .data.ptr = mark};
  if ((connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) ||
      epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e)) {
    close(fd);
    return -1;
  }
  opened++;
  return fd;
}

/* -- floods of frames --------------------------------------------------------------------------------------------- */

static uint8_t frames[WHOLE * (6 + TEXT)];
static size_t frame_bytes;

/* WHOLE client frames (RFC 6455 section 5.2), masked with zeros. */
static void make_frames(void) {
  int bytes = !strcmp(kind, "bytes"), pings = !strcmp(kind, "pings");
  size_t length = bytes ? 1 : pings ? 8 : TEXT, at = 0;
  for (int i = 0; i < WHOLE; i++) {
    int opcode = pings ? 9 : bytes && i ? 0 : 1, last = !bytes || i == WHOLE - 1;
    frames[at] = (uint8_t)(opcode | (last ? 0x80 : 0));
    frames[at + 1] = (uint8_t)(0x80 | length);
    memset(frames + at + 2, 0, 4);
    memset(frames + at + 6, 'a', length);
    at += 6 + length;
  }
  frame_bytes = at / WHOLE;
}

/* Counts the frames in what the server says; `left` is what is still to come of one. */
static void count_frames(const uint8_t *bytes, size_t n) {
  static uint8_t head[10];
  static size_t have;
  static uint64_t left;
  if (!bytes) {
    have = left = 0;
    return;
  }
  for (size_t at = 0; at < n;) {
    if (left) {
      uint64_t step = left < n - at ? left : n - at;
      left -= step;
      at += step;
      continue;
    }
    head[have++] = bytes[at++];
    if (have < 2) continue;
    uint64_t length = head[1] & 127;
    size_t whole = length == 126 ? 4 : length == 127 ? 10 : 2;
    if (have < whole) continue;
    if (whole > 2) {
      length = 0;
      for (size_t i = 2; i < whole; i++) length = length << 8 | head[i];
    }
    int opcode = head[0] & 15;
    have = 0;
    left = length;
    if (opcode == 10 && !strcmp(kind, "pings")) taken++;
    else if (opcode == 1 && !strcmp(kind, "bytes")) taken += WHOLE;
    else if (opcode == 1 && length == TEXT) taken++; /* the others' messages are longer */
  }
}

static void flood(void) {
  static uint8_t buffer[1 << 18];
  char head[512];
  int here = 0, n = snprintf(head, sizeof head, HEAD, strcmp(kind, "messages") ? "/ws?channel=abuse" : "/ws?channel=bench", port);
  double end = now() + LIMIT;
  make_frames();
  size_t all = frame_bytes * WHOLE;
  while (!stopped && now() < end) {
    int fd = begin(&here, EPOLLIN | EPOLLOUT), open = 0, asked = 0;
    size_t at = 0, sent_bytes = 0;
    uint64_t before = offered;
    count_frames(NULL, 0);
    for (int alive = fd >= 0; alive && !stopped && now() < end;) {
      struct epoll_event e;
      if (epoll_wait(poller, &e, 1, 100) < 1) continue;
      if (e.events & (EPOLLERR | EPOLLHUP)) break;
      if (e.events & EPOLLIN) {
        ssize_t got = recv(fd, buffer, sizeof buffer, 0);
        if (got <= 0 && (!got || errno != EAGAIN)) break;
        uint8_t *answer = open || got <= 0 ? buffer : memmem(buffer, (size_t)got, "\r\n\r\n", 4);
        if (got > 0 && !open && answer) {
          if (memcmp(buffer + 9, "101", 3)) break;
          open = 1;
          got -= answer + 4 - buffer;
          answer += 4;
          struct epoll_event both = {.events = EPOLLIN | EPOLLOUT, .data.ptr = &here};
          epoll_ctl(poller, EPOLL_CTL_MOD, fd, &both);
        }
        if (open && got > 0) count_frames(answer, (size_t)got);
      }
      if (!(e.events & EPOLLOUT)) continue;
      if (!asked) {
        struct epoll_event only = {.events = EPOLLIN, .data.ptr = &here};
        alive = send(fd, head, (size_t)n, MSG_NOSIGNAL) == n;
        asked = 1;
        epoll_ctl(poller, EPOLL_CTL_MOD, fd, &only);
      } else if (open) {
        ssize_t sent = send(fd, frames + at, all - at, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) break;
        if (sent <= 0) continue;
        at = (at + (size_t)sent) % all;
        sent_bytes += (size_t)sent;
        offered = before + sent_bytes / frame_bytes;
      }
    }
    if (fd >= 0) close(fd);
    if (!stopped) usleep((useconds_t)(RETURN * 1e6));
  }
}

/* -- handshakes that do not come to an end ------------------------------------------------------------------------ */

typedef struct {
  int fd;
  size_t at;
  double due;
} slow;

static void trickle(void) {
  static slow all[SLOW];
  static char head[4096];
  int n = snprintf(head, sizeof head, HEAD, "/ws", port) - 2; /* never the empty line */
  memset(head + n, 'a', sizeof head - (size_t)n);
  double start = now(), end = start + LIMIT;
  int next = 0;
  for (int i = 0; i < SLOW; i++) all[i].fd = -1;
  while (!stopped && now() < end) {
    struct epoll_event events[256];
    int count = epoll_wait(poller, events, 256, 5);
    for (int i = 0; i < count; i++) {
      slow *c = events[i].data.ptr;
      char answer[1024];
      ssize_t got = c->fd < 0 ? -1 : recv(c->fd, answer, sizeof answer, 0);
      if (c->fd < 0 || got > 0 || (got < 0 && errno == EAGAIN)) continue;
      close(c->fd);
      c->fd = -1;
      taken++;
    }
    double t = now();
    for (int i = 0; i < SLOW; i++) {
      slow *c = &all[i];
      if (c->fd < 0 || c->due > t || c->at == sizeof head) continue;
      if (send(c->fd, head + c->at, 1, MSG_NOSIGNAL) == 1) c->at++, offered++;
      c->due += TRICKLE;
    }
    for (int tried = 0; (double)opened < (t - start) * RAMP && tried < SLOW; tried++, next = (next + 1) % SLOW) {
      slow *c = &all[next];
      if (c->fd >= 0) continue;
      *c = (slow){.fd = begin(c, EPOLLIN), .due = t + TRICKLE};
      if (c->fd < 0) break;
    }
    if ((double)opened < (t - start) * RAMP) start = t - (double)opened / RAMP; /* all are open: nothing is caught up later */
  }
}

int main(int count, char **arguments) {
  int option;
  while ((option = getopt(count, arguments, "p:k:")) != -1) switch (option) {
      case 'p': port = atoi(optarg); break;
      case 'k': kind = optarg; break;
      default: return 2;
    }
  const char *kinds[] = {"messages", "apart", "pings", "bytes", "handshakes"};
  int known = 0;
  for (size_t i = 0; kind && i < sizeof kinds / sizeof *kinds; i++) known |= !strcmp(kind, kinds[i]);
  if (!port || !known) {
    fprintf(stderr, "abuse: see the head of abuse.c\n");
    return 2;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  signal(SIGTERM, stop);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  poller = epoll_create1(0);
  if (!strcmp(kind, "handshakes")) trickle();
  else flood();
  struct timespec cpu;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  printf("{\"offered\":%llu,\"taken\":%llu,\"opened\":%llu,\"cpu\":%.3f}\n", (unsigned long long)offered,
         (unsigned long long)taken, (unsigned long long)opened, (double)cpu.tv_sec + (double)cpu.tv_nsec / 1e9);
  return 0;
}
