/* load: opens WebSocket subscribers and publishers, publishes marked messages, counts every delivery.
 *
 *   load -p PORT -n SUBSCRIBERS -P PUBLISHERS [-j PROCESSES] [options] PHASE...
 *
 * A PHASE is `window:W:SECONDS` (closed loop: at most W messages not yet delivered to all), `rate:R:SECONDS` (R messages
 * a second, at most BEHIND waiting), `stall:N:R:SECONDS` (the same, while N subscribers do not read; they read again when
 * it is over), `abuse:KIND:R:SECONDS` (the same, while the program of -A abuses the server), `return:N:SECONDS` (all
 * subscribers leave, N messages are published, and they return at once, within SECONDS at most), `as:WHO:SECONDS` (all
 * subscribers leave and return as `anonymous`, or with a token of -T each in the `header` or as `subprotocol`; SECONDS to
 * rest before and after) or `idle:SECONDS`. Prints one JSON line when all are connected and one per phase. Every message
 * carries its publisher and a consecutive number, so a subscriber knows what is missing, repeated or out of order. CPU and
 * memory of the processes named by -i are read here, at the edges of the same interval.
 *
 * Loopback only; ends by itself: each phase, each drain and the whole run have a limit.
 *
 * How it stays faster than what it measures: one recv() per readable socket into one shared buffer, no allocation and
 * no clock reading per message, several processes where there are cores (-j; publishers live in the first).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROCESSES 16
#define GROUPS 4
#define PIDS 64
#define BEHIND 50       /* messages that a fixed rate may run ahead of a server that cannot keep up */
#define WARM 0.7        /* seconds of a phase before it is measured */
#define DRAIN 20.0      /* seconds to wait for what is still on its way */
#define CONNECT 90.0    /* seconds until all must be connected */
#define BUCKETS 1536    /* latency: 32 steps per power of two of microseconds */
#define MARK 36         /* bytes of "T=<16 hex> P=<4 hex> N=<8 hex> " */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="

enum { CONNECTING, UPGRADING, GREETING, OPEN, DEAD };
enum { ANONYMOUS, HEADER, SUBPROTOCOL };

typedef struct {
  int fd, state, publisher; /* publisher: its number, or -1 */
  uint8_t *rest;            /* the beginning of a frame whose end has not come yet */
  size_t rest_bytes;
  uint8_t *out;             /* what the kernel did not take yet (publishers only) */
  size_t out_bytes, out_room;
  uint32_t *next;           /* the number expected from each publisher */
} connection;

typedef struct { /* one process writes, the first one reads */
  _Alignas(64) _Atomic uint64_t delivered;
  _Atomic uint64_t disordered, open, failed, closed;
  _Atomic uint64_t latency[BUCKETS];
  uint64_t answers[BUCKETS]; /* to publishes; only in the first process */
} tally;

typedef struct {
  _Atomic int measuring, stop, go;
  tally tallies[PROCESSES];
} board;

typedef struct {
  char name[32];
  int pids[PIDS], count;
} group;

static const char *path = "/ws", *publisher_path, *format = "%M", *pong_from, *pong_to, *greetings[8];
static const char *subprotocol, *welcome, *answer, *since, *abuser, *tokens[16384];
static int token_count, first_token, credential; /* who subscribers say that they are */
static char place[128]; /* the position of the newest message, as `since` is followed by it */
static int receive_buffer, slow, port, subscribers = 100, base, publishers = 1, processes = 1, size = 128, at_once = 200, greeting_count;
static double settle = 1;
static group groups[GROUPS];
static int group_count;

static board *shared;
static tally *mine;
static int self_index, poller, wake;
static pid_t load_pids[PROCESSES];
static connection *all;
static int total, upgrading;
static uint64_t published, answered;
static int noting;
static uint32_t *numbers; /* the next number of each publisher */

/* -- clocks, CPU, memory ------------------------------------------------------------------------------------------ */

static uint64_t nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double now(void) { return (double)nanoseconds() / 1e9; }

/* CPU seconds of a process with all its threads, also ended ones; 0 if it is gone. */
static double cpu_of(pid_t pid) {
  clockid_t clock;
  struct timespec t;
  if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t)) return 0;
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void read_cpu(double *out) {
  for (int g = 0; g < group_count; g++) {
    out[g] = 0;
    for (int i = 0; i < groups[g].count; i++) out[g] += cpu_of(groups[g].pids[i]);
  }
}

/* Ticks of all cores, and those of them that the host gave to other machines (/proc/stat). */
static void read_ticks(double ticks[2]) {
  unsigned long long t[8] = {0};
  FILE *f = fopen("/proc/stat", "r");
  ticks[0] = ticks[1] = 0;
  if (!f) return;
  if (fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", t, t + 1, t + 2, t + 3, t + 4, t + 5, t + 6, t + 7) == 8)
    for (int i = 0; i < 8; i++) ticks[0] += (double)t[i];
  ticks[1] = (double)t[7];
  fclose(f);
}

static double stolen(const double *before, const double *after) {
  return after[0] > before[0] ? (after[1] - before[1]) / (after[0] - before[0]) : 0;
}

/* Proportional set size in KB: pages shared by several processes count once. */
static void read_memory(long *out) {
  for (int g = 0; g < group_count; g++) {
    out[g] = 0;
    for (int i = 0; i < groups[g].count; i++) {
      char line[256];
      snprintf(line, sizeof line, "/proc/%d/smaps_rollup", groups[g].pids[i]);
      FILE *f = fopen(line, "r");
      if (!f) continue;
      long kb;
      while (fgets(line, sizeof line, f))
        if (sscanf(line, "Pss: %ld kB", &kb) == 1) { out[g] += kb; break; }
      fclose(f);
    }
  }
}

/* -- latency histogram -------------------------------------------------------------------------------------------- */

static int bucket_of(uint64_t us) {
  if (us < 64) return (int)us;
  int power = 63 - __builtin_clzll(us);
  int index = 64 + (power - 6) * 32 + (int)((us >> (power - 5)) & 31);
  return index < BUCKETS ? index : BUCKETS - 1;
}

static double bucket_ms(int index) {
  if (index < 64) return index / 1000.0;
  int power = 6 + (index - 64) / 32;
  return (double)((32ull + (uint64_t)(index - 64) % 32) << (power - 5)) / 1000.0;
}

static double percentile(const uint64_t *counts, double share) {
  uint64_t sum = 0, seen = 0;
  for (int i = 0; i < BUCKETS; i++) sum += counts[i];
  if (!sum) return 0;
  for (int i = 0; i < BUCKETS; i++)
    if ((seen += counts[i]) >= (uint64_t)((double)sum * share + 0.5) && seen) return bucket_ms(i);
  return bucket_ms(BUCKETS - 1);
}

/* -- one connection ----------------------------------------------------------------------------------------------- */

static void watch(connection *c, uint32_t events) {
  struct epoll_event e = {.events = events, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void drop(connection *c) {
  if (c->state == DEAD) return;
  if (c->state == OPEN) {
    mine->open--;
    mine->closed++;
  } else {
    upgrading--;
    mine->failed++;
  }
  c->state = DEAD;
  close(c->fd);
  free(c->rest);
  c->rest = NULL;
}

static void flush_out(connection *c) {
  while (c->out_bytes) {
    ssize_t sent = send(c->fd, c->out, c->out_bytes, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno != EAGAIN) drop(c);
      return;
    }
    c->out_bytes -= (size_t)sent;
    memmove(c->out, c->out + sent, c->out_bytes);
  }
  watch(c, EPOLLIN);
}

static void send_bytes(connection *c, const void *bytes, size_t n) {
  ssize_t sent = c->out_bytes ? 0 : send(c->fd, bytes, n, MSG_NOSIGNAL);
  if (sent < 0) {
    if (errno != EAGAIN) {
      drop(c);
      return;
    }
    sent = 0;
  }
  size_t rest = n - (size_t)sent;
  if (!rest) return;
  if (c->out_bytes + rest > c->out_room) {
    c->out_room = (c->out_bytes + rest) * 2;
    c->out = realloc(c->out, c->out_room);
  }
  memcpy(c->out + c->out_bytes, (const uint8_t *)bytes + sent, rest);
  c->out_bytes += rest;
  watch(c, EPOLLIN | EPOLLOUT);
}

/* A client's frame (RFC 6455 section 5.2), masked with zeros: the server has to unmask all the same. */
static void send_frame(connection *c, int opcode, const void *payload, size_t n) {
  static uint8_t frame[70000];
  size_t head = 2;
  if (n > sizeof frame - 14) n = sizeof frame - 14;
  frame[0] = (uint8_t)(0x80 | opcode);
  if (n < 126) {
    frame[1] = (uint8_t)(0x80 | n);
  } else {
    frame[1] = 0x80 | 126;
    frame[2] = (uint8_t)(n >> 8);
    frame[3] = (uint8_t)n;
    head = 4;
  }
  memset(frame + head, 0, 4);
  memcpy(frame + head + 4, payload, n);
  send_bytes(c, frame, head + 4 + n);
}

static uint64_t hex(const uint8_t *digits, int count) {
  uint64_t value = 0;
  for (int i = 0; i < count; i++) value = value << 4 | (uint64_t)((digits[i] & 15) + (digits[i] >> 6) * 9);
  return value;
}

/* The `"id":"..."` of a message, which stands before what was published. */
static void note_place(const uint8_t *payload, const uint8_t *mark) {
  const uint8_t *id = memmem(payload, (size_t)(mark - payload), "\"id\":\"", 6);
  if (id) snprintf(place, sizeof place, "%.*s", (int)strcspn((const char *)id + 6, "\""), (const char *)id + 6);
}

/* An answer to a publish carries the microsecond in which it was sent, as its %R. */
static void count_answer(const uint8_t *payload, size_t n, uint64_t read_at) {
  size_t prefix = strlen(answer);
  if (n <= prefix || memcmp(payload, answer, prefix)) return;
  answered++;
  if (!shared->measuring) return;
  uint64_t sent_at = strtoull((const char *)payload + prefix, NULL, 10), at = read_at / 1000;
  mine->answers[bucket_of(at > sent_at ? at - sent_at : 0)]++;
}

static void count_message(connection *c, const uint8_t *payload, size_t n, uint64_t read_at) {
  const uint8_t *mark = n >= MARK && payload[0] == 'T' && payload[1] == '=' ? payload : memmem(payload, n, "T=", 2);
  if (!mark || (size_t)(payload + n - mark) < MARK || mark[18] != ' ' || c->publisher >= 0) return;
  if (noting) note_place(payload, mark);
  uint32_t publisher = (uint32_t)hex(mark + 21, 4), number = (uint32_t)hex(mark + 28, 8);
  if (publisher >= (uint32_t)publishers) return;
  if (number != c->next[publisher]) mine->disordered++;
  c->next[publisher] = number + 1;
  atomic_store_explicit(&mine->delivered, mine->delivered + 1, memory_order_relaxed);
  if (!shared->measuring) return;
  uint64_t sent_at = hex(mark + 2, 16);
  int bucket = bucket_of(read_at > sent_at ? (read_at - sent_at) / 1000 : 0);
  atomic_store_explicit(&mine->latency[bucket], mine->latency[bucket] + 1, memory_order_relaxed);
}

static void open_up(connection *c) {
  c->state = OPEN;
  upgrading--;
  mine->open++;
}

static void take_frame(connection *c, int opcode, const uint8_t *payload, size_t n, uint64_t read_at) {
  if (opcode == 9) send_frame(c, 10, payload, n);
  else if (opcode == 8) drop(c);
  else if (pong_from && n == strlen(pong_from) && !memcmp(payload, pong_from, n))
    send_frame(c, 1, pong_to, strlen(pong_to));
  else if (c->state == GREETING) {
    if (memmem(payload, n, welcome, strlen(welcome))) open_up(c);
  } else {
    if (answer && c->publisher >= 0) count_answer(payload, n, read_at);
    count_message(c, payload, n, read_at);
  }
}

/* What a client says first. %N is its number, %C the last two digits of it; %S is `since` with the position where all stood when they left, or nothing. */
static void greet(connection *c) {
  int resumes = since && place[0];
  for (int i = 0; i < greeting_count; i++) {
    char text[512];
    int n = 0;
    for (const char *at = greetings[i]; *at && n < (int)sizeof text - 160; at++) {
      if (at[0] == '%' && at[1] == 'N') n += sprintf(text + n, "%d", (int)(c - all)), at++;
      else if (at[0] == '%' && at[1] == 'C') n += sprintf(text + n, "%d", (int)(c - all) % 100), at++;
      else if (at[0] == '%' && at[1] == 'S') n += resumes ? sprintf(text + n, "%s%s\"", since, place) : 0, at++;
      else text[n++] = *at;
    }
    send_frame(c, 1, text, (size_t)n);
  }
}

/* The length of the answer to the upgrade, 0 while it is incomplete. */
static size_t take_upgrade(connection *c, const uint8_t *bytes, size_t n) {
  const uint8_t *end = memmem(bytes, n, "\r\n\r\n", 4);
  if (!end) return 0;
  if (memcmp(bytes + 9, "101", 3)) {
    static int said;
    if (!said++) fprintf(stderr, "refused: %.*s\n", n > 200 ? 200 : (int)n, (const char *)bytes);
    drop(c);
    return n;
  }
  c->state = GREETING;
  greet(c);
  if (!welcome) open_up(c);
  return (size_t)(end - bytes) + 4;
}

static void readable(connection *c) {
  static uint8_t buffer[1 << 20];
  if (c->rest_bytes) memcpy(buffer, c->rest, c->rest_bytes);
  ssize_t got = recv(c->fd, buffer + c->rest_bytes, sizeof buffer - c->rest_bytes, 0);
  if (got <= 0) {
    if (got == 0 || errno != EAGAIN) drop(c);
    return;
  }
  size_t n = c->rest_bytes + (size_t)got, at = 0;
  uint64_t read_at = nanoseconds();
  if (c->state == UPGRADING) at = take_upgrade(c, buffer, n);
  while ((c->state == GREETING || c->state == OPEN) && n - at >= 2) {
    const uint8_t *frame = buffer + at;
    uint64_t length = frame[1] & 127;
    size_t head = 2;
    if (length == 126) {
      if (n - at < 4) break;
      length = (uint64_t)frame[2] << 8 | frame[3];
      head = 4;
    } else if (length == 127) {
      if (n - at < 10) break;
      length = 0;
      for (int i = 0; i < 8; i++) length = length << 8 | frame[2 + i];
      head = 10;
    }
    if (n - at - head < length || n - at < head) break;
    take_frame(c, frame[0] & 15, frame + head, length, read_at);
    at += head + length;
  }
  if (c->state == DEAD) return;
  if (n == at && !c->rest) return;
  c->rest_bytes = n - at;
  if (c->rest_bytes) {
    c->rest = realloc(c->rest, c->rest_bytes);
    memcpy(c->rest, buffer + at, c->rest_bytes);
  } else {
    free(c->rest);
    c->rest = NULL;
  }
}

static void begin(connection *c) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (c - all < slow) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
  c->state = CONNECTING;
  upgrading++;
  int result = connect(c->fd, (struct sockaddr *)&address, sizeof address);
  struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
  if ((result < 0 && errno != EINPROGRESS) || epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e)) drop(c);
}

static void upgrade(connection *c) {
  int error = 0;
  socklen_t length = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
  if (error) {
    drop(c);
    return;
  }
  char request[4096];
  int who = c->publisher >= 0 ? ANONYMOUS : credential;
  const char *token = who ? tokens[(first_token + (int)(c - all)) % token_count] : "";
  int n = snprintf(request, sizeof request,
                   "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                   "Sec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\n%s%s%s%s%s%s%s%s\r\n",
                   c->publisher >= 0 && publisher_path ? publisher_path : path, port,
                   subprotocol ? "Sec-WebSocket-Protocol: " : "", subprotocol ? subprotocol : "",
                   who == SUBPROTOCOL ? ", tocsin.bearer." : "", who == SUBPROTOCOL ? token : "", subprotocol ? "\r\n" : "",
                   who == HEADER ? "Authorization: Bearer " : "", who == HEADER ? token : "", who == HEADER ? "\r\n" : "");
  c->state = UPGRADING;
  watch(c, EPOLLIN);
  send_bytes(c, request, (size_t)n);
}

static void turn(int timeout_ms) {
  struct epoll_event events[512];
  int count = epoll_wait(poller, events, 512, timeout_ms);
  uint64_t before = mine->delivered;
  for (int i = 0; i < count; i++) {
    connection *c = events[i].data.ptr;
    if (!c) { /* another process has delivered: the window may have moved */
      uint64_t drained;
      if (read(wake, &drained, sizeof drained) < 0) continue;
      continue;
    }
    if (c->state == CONNECTING) upgrade(c);
    else if (c->state != DEAD && c->out_bytes && events[i].events & EPOLLOUT) flush_out(c);
    if (c->state != DEAD && c->state != CONNECTING && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
  }
  if (self_index && mine->delivered != before) {
    uint64_t one = 1;
    if (write(wake, &one, sizeof one) < 0) return;
  }
}

/* -- the run ------------------------------------------------------------------------------------------------------ */

/* Opens this process's connections up to `count`. */
static void connect_up_to(int count) {
  static int next;
  double limit = now() + CONNECT;
  while (mine->open + mine->failed + mine->closed < (uint64_t)count && now() < limit) {
    while (next < count && upgrading < at_once) begin(&all[next++]);
    turn(10);
  }
}

static int share_of(int count, int index) { return count / processes + (index < count % processes); }

/* Process `index` takes every processes-th subscriber; the first one also has the publishers. */
static void make_connections(int index) {
  int own = share_of(subscribers, index);
  total = own + (index ? 0 : publishers);
  all = calloc((size_t)total + 1, sizeof *all);
  uint32_t *next = calloc((size_t)(own + 1) * (size_t)(publishers + 1), sizeof *next);
  for (int i = 0; i < total; i++) {
    all[i].publisher = i < own ? -1 : i - own;
    if (i < own) all[i].next = next + (size_t)i * (size_t)publishers;
  }
  mine = &shared->tallies[index];
  self_index = index;
  poller = epoll_create1(0);
  if (!index) {
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, wake, &e);
  }
}

static uint64_t sum(size_t field) {
  uint64_t value = 0;
  for (int i = 0; i < processes; i++) value += *(_Atomic uint64_t *)((char *)&shared->tallies[i] + field);
  return value;
}
#define SUM(field) sum(offsetof(tally, field))

static void publish(void) {
  static uint64_t turns;
  connection *c = NULL;
  for (int i = 0; i < publishers && (!c || c->state != OPEN); i++)
    c = &all[total - publishers + (int)(turns++ % (uint64_t)publishers)];
  if (!c || c->state != OPEN) return;
  char message[65536], framed[66000];
  int n = snprintf(message, sizeof message, "T=%016llx P=%04x N=%08x ", (unsigned long long)nanoseconds(),
                   (unsigned)c->publisher, numbers[c->publisher]++);
  memset(message + n, 'x', (size_t)(size - n));
  const char *ref = strstr(format, "%R"), *from = ref ? ref + 2 : format, *at = strstr(from, "%M");
  int length = 0;
  if (ref) length = snprintf(framed, sizeof framed, "%.*s%llu", (int)(ref - format), format,
                             (unsigned long long)(nanoseconds() / 1000));
  length += snprintf(framed + length, sizeof framed - (size_t)length, "%.*s%.*s%s", (int)(at - from), from, size, message,
                     at + 2);
  send_frame(c, 1, framed, (size_t)length);
  published++;
}

static void print_groups(const char *name, const double *values) {
  printf(",\"%s\":{", name);
  for (int g = 0; g < group_count; g++) printf("%s\"%s\":%.6f", g ? "," : "", groups[g].name, values[g]);
  printf("}");
}

static void differences(const double *from, const double *to, double *out) {
  for (int g = 0; g < GROUPS; g++) out[g] = to[g] - from[g];
}

/* The share of one core that the busiest load process used. */
static double busiest(const double *before, const double *after, double wall) {
  double most = 0;
  for (int i = 0; i < processes; i++)
    if (after[i] - before[i] > most) most = after[i] - before[i];
  return most / wall;
}

static void read_load(double *out) {
  for (int i = 0; i < processes; i++) out[i] = cpu_of(load_pids[i]);
}

static void wait_for(int count, double seconds) {
  double limit = now() + CONNECT;
  while (SUM(open) + SUM(failed) + SUM(closed) < (uint64_t)count && now() < limit) turn(10);
  limit = now() + seconds;
  while (now() < limit) turn(10);
}

/* The first subscribers stop to read, or go on. */
static void let_read(int count, int reads) {
  for (int i = 0; i < count; i++)
    if (all[i].state == OPEN) watch(&all[i], reads ? EPOLLIN : 0);
}

static void print_latencies(const char *name, const uint64_t *counts) {
  printf(",\"%s\":{\"p50\":%.3f,\"p99\":%.3f,\"max\":%.3f}", name, percentile(counts, .5), percentile(counts, .99),
         percentile(counts, 1));
}

typedef struct {
  pid_t pid;
  int said;
} abuse;

static abuse begin_abuse(const char *kind) {
  int ends[2];
  char text[16];
  snprintf(text, sizeof text, "%d", port);
  if (pipe(ends)) exit(1);
  abuse a = {.pid = fork(), .said = ends[0]};
  if (!a.pid) {
    dup2(ends[1], 1);
    execl(abuser, abuser, "-p", text, "-k", kind, (char *)NULL);
    _exit(127);
  }
  close(ends[1]);
  return a;
}

/* Ends it and adds what it says it did. */
static void end_abuse(abuse a, char *said, size_t room) {
  kill(a.pid, SIGTERM);
  size_t n = 0;
  for (ssize_t got; n < room - 1 && (got = read(a.said, said + n, room - 1 - n)) > 0;) n += (size_t)got;
  said[n] = 0;
  said[strcspn(said, "\n")] = 0;
  close(a.said);
  waitpid(a.pid, NULL, 0);
}

/* What watched processes use in a second when nothing happens. */
static void read_rest(double *out) {
  double before[GROUPS] = {0}, after[GROUPS] = {0}, from = now();
  read_cpu(before);
  wait_for(0, 0.5);
  read_cpu(after);
  double seconds = now() - from;
  for (int g = 0; g < GROUPS; g++) out[g] = (after[g] - before[g]) / seconds;
}

static void leave_all(void) {
  for (int i = 0; i < subscribers; i++) {
    close(all[i].fd);
    free(all[i].rest);
    all[i].rest = NULL;
    all[i].rest_bytes = 0;
    all[i].state = DEAD;
    mine->open--;
  }
}

/* Everybody leaves and returns as somebody else. */
static void run_as(const char *text, const char *who, double seconds) {
  double before[GROUPS] = {0}, after[GROUPS] = {0}, rest[GROUPS] = {0}, used[GROUPS] = {0}, ticks0[2], ticks1[2];
  credential = !strcmp(who, "header") ? HEADER : !strcmp(who, "subprotocol") ? SUBPROTOCOL : ANONYMOUS;
  if (credential && !token_count) exit(2);
  if (credential) first_token += subscribers; /* none is shown twice while there are others */
  leave_all();
  wait_for(0, seconds);
  read_rest(rest);
  read_ticks(ticks0);
  read_cpu(before);
  double start = now(), limit = start + CONNECT;
  for (int next = 0; (next < subscribers || upgrading) && now() < limit;) {
    while (next < subscribers && upgrading < at_once) begin(&all[next++]);
    turn(10);
  }
  double connected = now();
  wait_for(0, seconds);
  read_cpu(after);
  read_ticks(ticks1);
  double settled = now();
  for (int g = 0; g < group_count; g++) used[g] = after[g] - before[g] - rest[g] * (settled - start);
  printf("{\"phase\":\"%s\",\"seconds\":%.4f,\"connections\":%llu,\"failed\":%llu,\"delivered\":0,\"stolen\":%.3f", text,
         connected - start, (unsigned long long)(SUM(open) - (uint64_t)publishers),
         (unsigned long long)((uint64_t)(subscribers + publishers) - SUM(open)), stolen(ticks0, ticks1));
  print_groups("cpu_seconds", used);
  printf("}\n");
  fflush(stdout);
}

/* Everybody leaves, misses messages, and returns. */
static void run_return(const char *text, int count, double seconds) {
  uint64_t live = (uint64_t)subscribers, got = SUM(delivered), wrong = SUM(disordered), from_answers = answered;
  double cpu0[GROUPS] = {0}, cpu1[GROUPS] = {0}, used[GROUPS] = {0}, load0[PROCESSES] = {0}, load1[PROCESSES] = {0};
  noting = 1;
  publish();
  double limit = now() + DRAIN;
  while (SUM(delivered) - got < live && now() < limit) turn(10);
  noting = 0;
  got += live;
  leave_all();
  for (int i = 0; i < count; i++) publish();
  limit = now() + DRAIN;
  while (answered - from_answers < (uint64_t)count + 1 && now() < limit) turn(10);
  wait_for(0, settle);
  uint64_t wanted = (uint64_t)count * live;
  double start = now(), opened = 0, ticks0[2], ticks1[2];
  read_ticks(ticks0);
  read_cpu(cpu0);
  read_load(load0);
  for (int next = 0; now() - start < seconds && SUM(delivered) - got < wanted;) {
    while (next < subscribers && upgrading < at_once) begin(&all[next++]);
    turn(10);
    if (!opened && next == subscribers && !upgrading) opened = now() - start;
  }
  double wall = now() - start;
  read_ticks(ticks1);
  read_cpu(cpu1);
  read_load(load1);
  differences(cpu0, cpu1, used);
  printf("{\"phase\":\"%s\",\"seconds\":%.4f,\"opened\":%.4f,\"subscribers\":%llu,\"published\":%d,\"delivered\":%llu,"
         "\"missing\":%lld,\"out_of_order\":%llu,\"failed\":%llu,\"behind\":0,\"load_cpu\":%.3f,\"stolen\":%.3f",
         text, wall, opened,
         (unsigned long long)live, count, (unsigned long long)(SUM(delivered) - got),
         (long long)(wanted - (SUM(delivered) - got)), (unsigned long long)(SUM(disordered) - wrong),
         (unsigned long long)(SUM(closed) + SUM(failed)), busiest(load0, load1, wall), stolen(ticks0, ticks1));
  uint64_t none[BUCKETS] = {0};
  print_latencies("latency_ms", none);
  print_groups("cpu_seconds", used);
  printf("}\n");
  fflush(stdout);
}

static void run_phase(const char *text) {
  int window = 0, stalled = 0, missed = 0;
  double rate = 0, seconds = 0;
  if (sscanf(text, "return:%d:%lf", &missed, &seconds) == 2) {
    run_return(text, missed, seconds);
    return;
  }
  char who[32], kind[32] = "", said[512] = "";
  if (sscanf(text, "as:%31[a-z]:%lf", who, &seconds) == 2) {
    run_as(text, who, seconds);
    return;
  }
  if (sscanf(text, "abuse:%31[a-z]:%lf:%lf", kind, &rate, &seconds) != 3 &&
      sscanf(text, "window:%d:%lf", &window, &seconds) != 2 && sscanf(text, "rate:%lf:%lf", &rate, &seconds) != 2 &&
      sscanf(text, "stall:%d:%lf:%lf", &stalled, &rate, &seconds) != 3 && sscanf(text, "idle:%lf", &seconds) != 1) {
    fprintf(stderr, "bad phase %s\n", text);
    exit(2);
  }
  uint64_t live = SUM(open) - (uint64_t)publishers, sent = 0, first = published, got = SUM(delivered);
  uint64_t wrong = SUM(disordered), behind = 0, from_published = 0, from_delivered = 0;
  double start = now(), measure = start + WARM, end = measure + seconds, wall = 0;
  double cpu0[GROUPS] = {0}, cpu1[GROUPS] = {0}, used[GROUPS] = {0}, load0[PROCESSES] = {0}, load1[PROCESSES] = {0};
  double ticks0[2] = {0}, ticks1[2];
  long memory0[GROUPS] = {0}, memory1[GROUPS] = {0};
  for (int p = 0; p < processes; p++) memset((void *)shared->tallies[p].latency, 0, sizeof mine->latency);
  memset(mine->answers, 0, sizeof mine->answers);
  uint64_t had_answers = answered;
  abuse abused = {0};
  if (*kind && !abuser) exit(2);
  if (stalled || *kind) read_memory(memory0);
  let_read(stalled, 0);
  for (;;) {
    double t = now();
    if (!shared->measuring && t >= measure) {
      shared->measuring = 1;
      from_published = published;
      from_delivered = SUM(delivered);
      read_cpu(cpu0);
      read_load(load0);
      read_ticks(ticks0);
      wall = t;
      if (*kind) abused = begin_abuse(kind);
    }
    if (t >= end) break;
    if (live && (window || rate > 0)) {
      uint64_t limit = window ? (uint64_t)window : BEHIND;
      uint64_t due = window ? UINT64_MAX : (uint64_t)((t - start) * rate);
      for (int n = 0; n < (int)limit && sent < due; n++) {
        if ((published - first) * live - (SUM(delivered) - got) >= limit * live) {
          if (!window) behind++, sent = due; /* what the server cannot take is not sent later in a burst */
          break;
        }
        publish();
        sent++;
      }
    }
    turn(1);
  }
  shared->measuring = 0;
  read_ticks(ticks1);
  read_cpu(cpu1);
  read_load(load1);
  wall = now() - wall;
  if (stalled || *kind) read_memory(memory1);
  let_read(stalled, 1);
  if (*kind) end_abuse(abused, said, sizeof said);
  uint64_t delivered = SUM(delivered) - from_delivered, messages = published - from_published;
  uint64_t latency[BUCKETS] = {0};
  for (int p = 0; p < processes; p++)
    for (int i = 0; i < BUCKETS; i++) latency[i] += shared->tallies[p].latency[i];
  uint64_t wanted = (published - first) * live;
  double limit = now() + DRAIN;
  while ((SUM(delivered) - got < wanted || (answer && answered - had_answers < published - first)) && now() < limit) turn(10);
  differences(cpu0, cpu1, used);
  printf("{\"phase\":\"%s\",\"seconds\":%.4f,\"subscribers\":%llu,\"published\":%llu,\"delivered\":%llu,"
         "\"missing\":%lld,\"out_of_order\":%llu,\"failed\":%llu,\"behind\":%llu,\"load_cpu\":%.3f,\"stolen\":%.3f",
         text, wall, (unsigned long long)live, (unsigned long long)messages, (unsigned long long)delivered,
         (long long)(wanted - (SUM(delivered) - got)), (unsigned long long)(SUM(disordered) - wrong),
         (unsigned long long)SUM(closed), (unsigned long long)behind, busiest(load0, load1, wall), stolen(ticks0, ticks1));
  print_latencies("latency_ms", latency);
  if (answer) {
    print_latencies("answer_ms", mine->answers);
    printf(",\"unanswered\":%lld", (long long)(published - first - (answered - had_answers)));
  }
  print_groups("cpu_seconds", used);
  if (*kind) printf(",\"abuse\":%s", *said ? said : "null");
  if (stalled || *kind) {
    for (int g = 0; g < group_count; g++) used[g] = (double)(memory1[g] - memory0[g]);
    print_groups("memory_kb", used);
  }
  printf("}\n");
  fflush(stdout);
}

/* Connects everybody and says what those after the first `base` cost, less what servers use when nothing happens. */
static void run_connect(void) {
  double before[GROUPS] = {0}, after[GROUPS] = {0}, rest[GROUPS] = {0}, used[GROUPS];
  long memory0[GROUPS] = {0}, memory1[GROUPS] = {0};
  for (int i = 1; i < processes; i++) {
    load_pids[i] = fork();
    if (load_pids[i]) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    make_connections(i);
    connect_up_to(share_of(base, i));
    while (!shared->go) turn(10);
    connect_up_to(total);
    while (!shared->stop) turn(100);
    _exit(0);
  }
  make_connections(0);
  if (base) {
    connect_up_to(share_of(base, 0));
    wait_for(base, settle);
  }
  read_cpu(before);
  read_memory(memory0);
  double start = now();
  shared->go = 1;
  connect_up_to(total);
  wait_for(subscribers + publishers, 0);
  double connected = now();
  wait_for(0, settle);
  read_cpu(after);
  double settled = now();
  read_memory(memory1);
  double idle0[GROUPS] = {0};
  read_cpu(idle0);
  double idle_from = now();
  wait_for(0, 0.5);
  read_cpu(rest);
  double idle = now() - idle_from;
  for (int g = 0; g < group_count; g++) used[g] = after[g] - before[g] - (rest[g] - idle0[g]) / idle * (settled - start);
  printf("{\"phase\":\"connect\",\"seconds\":%.3f,\"connections\":%llu,\"failed\":%llu", connected - start,
         (unsigned long long)(SUM(open) - (uint64_t)base),
         (unsigned long long)((uint64_t)(subscribers + publishers) - SUM(open)));
  print_groups("cpu_seconds", used);
  for (int g = 0; g < group_count; g++) used[g] = (double)(memory1[g] - memory0[g]);
  print_groups("memory_kb", used);
  printf("}\n");
  fflush(stdout);
}

static void add_group(char *text) {
  char *rest = strchr(text, '=');
  if (!rest || group_count == GROUPS) exit(2);
  group *g = &groups[group_count++];
  snprintf(g->name, sizeof g->name, "%.*s", (int)(rest - text), text);
  for (char *pid = strtok(rest + 1, ","); pid && g->count < PIDS; pid = strtok(NULL, ","))
    g->pids[g->count++] = atoi(pid);
}

static int read_tokens(const char *file) {
  FILE *f = fopen(file, "r");
  char line[2048];
  while (f && fgets(line, sizeof line, f) && token_count < (int)(sizeof tokens / sizeof *tokens)) {
    line[strcspn(line, "\n")] = 0;
    tokens[token_count++] = strdup(line);
  }
  if (f) fclose(f);
  return token_count;
}

int main(int count, char **arguments) {
  int option;
  while ((option = getopt(count, arguments, "p:u:U:n:b:P:j:s:f:g:k:c:i:t:r:w:a:S:B:A:T:")) != -1) switch (option) {
      case 'p': port = atoi(optarg); break;
      case 'u': path = optarg; break;
      case 'U': publisher_path = optarg; break;             /* where publishers have a path of their own */
      case 'n': subscribers = atoi(optarg); break;
      case 'b': base = atoi(optarg); break;                 /* subscribers that are open before anything is read */
      case 'P': publishers = atoi(optarg); break;
      case 'j': processes = atoi(optarg); break;
      case 's': size = atoi(optarg); break;                 /* bytes of a message */
      case 'f': format = optarg; break;                     /* a publish: %R the microsecond, then %M the message */
      case 'g': if (greeting_count < 8) greetings[greeting_count++] = optarg; break;
      case 'k': pong_from = strtok(optarg, "="); pong_to = strtok(NULL, "="); break; /* keep-alive by text: -k 2=3 */
      case 'r': subprotocol = optarg; break;
      case 'w': welcome = optarg; break;                    /* a client is open when it has heard this */
      case 'a': answer = optarg; break;                     /* what stands before %R in the answer to a publish */
      case 'S': since = optarg; break;                      /* what stands before a position in a greeting, as %S */
      case 'B': if (sscanf(optarg, "%d:%d", &slow, &receive_buffer) != 2) return 2; break; /* SO_RCVBUF of the first */
      case 'A': abuser = optarg; break;                     /* the program of `abuse` phases */
      case 'T': if (!read_tokens(optarg)) return 2; break;  /* a file of tokens, one a line, for `as` phases */
      case 'c': at_once = atoi(optarg); break;              /* handshakes under way */
      case 'i': add_group(optarg); break;                   /* processes to watch: -i server=12,13 */
      case 't': settle = atof(optarg); break;               /* seconds between the last handshake and the reading */
      default: return 2;
    }
  if (!port || processes < 1 || processes > PROCESSES || size < MARK || size > 65000 || !strstr(format, "%M") ||
      publishers < 0 || publishers > 1000 || subscribers < 1 || base >= subscribers || (pong_from && !pong_to)) {
    fprintf(stderr, "load: see the head of load.c\n");
    return 2;
  }
  double seconds = 2 * CONNECT + settle + 1;
  for (int i = optind; i < count; i++) {
    if (processes > 1 && (!strncmp(arguments[i], "stall", 5) || !strncmp(arguments[i], "return", 6) ||
                          !strncmp(arguments[i], "as:", 3))) return 2;
    char *last = strrchr(arguments[i], ':');
    seconds += WARM + DRAIN + 1 + (last ? 2 * atof(last + 1) : 0);
  }
  alarm((unsigned)seconds);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  wake = eventfd(0, EFD_NONBLOCK);
  numbers = calloc((size_t)publishers + 1, sizeof *numbers);
  load_pids[0] = getpid();
  if (shared == MAP_FAILED || wake < 0 || !numbers) return 1;
  run_connect();
  for (int i = optind; i < count; i++) run_phase(arguments[i]);
  shared->stop = 1;
  return 0;
}
