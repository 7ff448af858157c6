/* What can go wrong. `code` is that of the service (docs/protocol.md), or one of `closed`, `stopped`, `timeout`,
   `publish_timeout`, `outbox_full`, `user_changed`, `behind`, which are told by the client itself. */

export class TocsinError extends Error {
  name = "TocsinError";

  constructor(code, message, { retry_after: retryAfter, position } = {}) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
    this.position = position;
  }
}

/* No answer came in time. With `sent`, whether the message was published is unknown; without, it was not. */
export class PublishTimeout extends TocsinError {
  name = "PublishTimeout";

  constructor(sent) {
    super("publish_timeout", sent ? "not acknowledged in time: it may be published or not" : "not sent in time");
    this.sent = sent;
  }
}

export class OutboxFull extends TocsinError {
  name = "OutboxFull";

  constructor(size) {
    super("outbox_full", `${size} commands wait for their answer already`);
  }
}

/* The error that an `error` frame, or the `error` of an HTTP answer, tells of. */
export function refusal({ code, message, ...more }) {
  return new TocsinError(code, message, more);
}

/* Whether the same may be asked again after a while. */
export function isTransient(code) {
  return /^(rate_limited|unavailable|draining|internal)$/.test(code);
}
