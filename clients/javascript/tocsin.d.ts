/** The JavaScript client of Tocsin: see README.md. Times are in milliseconds, sizes in bytes. */

/** Connect, and stay connected. `url` may be relative to the page's; `http` counts as `ws`. */
export function connect(url: string | URL, options?: Options): Connection;

export interface Options {
  /** Called for each connection, and before a token ends. Without a token (null) one is anonymous. Has 15 s. */
  getToken?: () => string | null | undefined | Promise<string | null | undefined>;
  /** Commands that may wait for their answer at once: 1,000. */
  outbox?: number;
  /** Where there is none, or another one is wanted: that of the package `ws`, for instance. */
  WebSocket?: WebSocketConstructor;
  fetch?: typeof fetch;
  /** A number in [0, 1). */
  random?: () => number;
  clock?: Clock;
}

export interface Clock {
  /** Ms since 1970; never goes back. */
  now(): number;
  setTimeout(callback: () => void, ms: number): unknown;
  clearTimeout(timer: any): void;
}

/** What the client uses of a WebSocket. */
export type WebSocketConstructor = new (
  url: string,
  protocols: string[],
) => {
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(): void;
};

export type ConnectionState = "connecting" | "open" | "waiting" | "stopped";
export type ChannelState = "unsubscribed" | "subscribing" | "subscribed";

export interface ConnectionChange {
  state: ConnectionState;
  /** The close code that the connection ended with. */
  code?: number;
  /** One sentence for people. */
  reason?: string;
  /** `waiting`: ms until the next try; none while the page is put away. */
  delay?: number;
  /** What the service has said; `stopped`: why, unless by `close()`. */
  error?: Error;
}

export interface ChannelChange {
  state: ChannelState;
  /** `subscribed`: whether what was missed follows, as `Subscribed` has it. */
  recovered?: boolean | null;
  replayed?: number;
  /** `unsubscribed`: why, unless by `unsubscribe()` or `close()`. */
  error?: Error;
}

export interface Connection {
  readonly state: ConnectionState;
  readonly url: string;
  /** This connection's id, which is `from` in its messages; null before the first `open`. Each connection has another. */
  readonly client: string | null;
  /** The user of the token; null when anonymous. */
  readonly user: string | null;
  /** Who serves it, for people. */
  readonly worker: string | null;

  /** The channel of this name; always the same object. `options` count from its next `subscribe` on. */
  channel<Data = any>(name: string, options?: ChannelOptions): Channel<Data>;
  /** Connect now: without the rest of a wait, after a stop, or anew in place of a connection that is there. */
  connect(): void;
  /** Stop. Whoever waits for something is told: `TocsinError` with `closed`, or `PublishTimeout`. */
  close(): void;

  /** Returns what takes the listener off again. */
  on(name: "state", listener: (change: ConnectionChange) => void): () => void;
  off(name: "state", listener: (change: ConnectionChange) => void): void;
}

export interface ChannelOptions {
  /** `"watch"`: hear who is here; with `info` (a JSON object, 1 KiB): be here, too. */
  presence?: "watch" | { info?: object } | null;
}

export interface Channel<Data = any> extends AsyncIterable<Event<Data>> {
  readonly name: string;
  readonly state: ChannelState;
  /** The id of the last message that the listeners were handed, or where the subscription began; null before. */
  readonly position: string | null;
  /** Who is here, as far as it is known; up to 500. Empty unless `presence` was asked for. */
  readonly members: Member[];
  /** How many are here. */
  readonly count: number;

  /**
   * Hear this channel, over any number of connections, until `unsubscribe()`.
   *
   * Resolves when the channel is live for the first time. Rejects when it may not be heard, or the connection stops.
   * Again without options, it is the same promise; with `since` or `history` it is `already_subscribed`.
   */
  subscribe(options?: SubscribeOptions): Promise<Subscribed>;
  /** Hear it no more; nothing comes after this. */
  unsubscribe(): void;
  /**
   * Publish JSON, or bytes as binary: exactly once, through any number of connections.
   *
   * Resolves when the message is in the log. Rejects with `PublishTimeout`, `OutboxFull`, or what the service refuses;
   * with `user_changed` when it had not been sent before the connection became another user's.
   */
  publish(data: Data | Uint8Array | ArrayBuffer, options?: PublishOptions): Promise<Ack>;
  /** A page of the log. Rejects with `gone` and a `position` when the log does not reach back to `since`. */
  history(range?: { since?: string; before?: string; limit?: number }): Promise<Page<Data>>;
  /** A page of who is here. */
  presence(page?: { limit?: number; cursor?: string | null }): Promise<MembersPage>;

  on<Name extends keyof ChannelEvents<Data>>(name: Name, listener: (event: ChannelEvents<Data>[Name]) => void): () => void;
  off<Name extends keyof ChannelEvents<Data>>(name: Name, listener: (event: ChannelEvents<Data>[Name]) => void): void;

  /** Messages, gaps and presence from now on; subscribes, if that was not done. Throws what ends the subscription. */
  [Symbol.asyncIterator](): AsyncIterableIterator<Event<Data>>;
}

export interface SubscribeOptions {
  /** Go on after this id. Without: where the channel stands now; null: likewise, also where it was heard before. */
  since?: string | null;
  /** Without `since`: begin with the newest so many messages (0 to 1,000). */
  history?: number;
}

export interface Subscribed {
  position: string;
  /** true: exactly what was missed follows; false: it cannot be had (there is a `gap`); null: nothing was asked for. */
  recovered: boolean | null;
  replayed: number;
  reason?: GapReason;
}

export interface PublishOptions {
  /** 16 to 64 of `A-Z a-z 0-9 _ -`. The same key publishes once, whoever repeats it, for `key_seconds`; else a random one. */
  key?: string;
  /** Ms to wait for the answer, 2 ** 31 - 1 (24 days) at most; else as long as the key is good once it was sent, and without a limit before. */
  timeout?: number;
  /** Tell who listens now and keep nothing; never repeated, and refused while there is no connection. */
  ephemeral?: boolean;
}

export interface Ack {
  /** null for an ephemeral message. */
  id: string | null;
  /** An earlier try had published it already. */
  duplicate: boolean;
}

export interface Page<Data = any> {
  /** Ascending. */
  messages: Message<Data>[];
  /** Of the last message: the next `since`. */
  position: string;
  /** Nothing more follows in the range. */
  complete: boolean;
}

export interface MembersPage {
  members: Member[];
  count: number;
  /** For the next page; null at the end. */
  cursor: string | null;
}

export interface ChannelEvents<Data = any> {
  message: Message<Data>;
  gap: Gap;
  presence: Presence;
  state: ChannelChange;
}

export type Event<Data = any> = Message<Data> | Gap | Presence;

export interface Message<Data = any> {
  type: "message";
  channel: string;
  /** null for an ephemeral message. */
  id: string | null;
  /** JSON; Uint8Array for what was published as binary. */
  data: Data | Uint8Array;
  /** The connection that published it; null for REST. */
  from: string | null;
  user: string | null;
  /** Ms since 1970, by the service's store. */
  at: number;
}

export type GapReason = "expired" | "diverged" | "cleared";

/** Messages are missing here: reload your state. What follows comes after `position`. */
export interface Gap {
  type: "gap";
  channel: string;
  reason: GapReason;
  position: string | null;
}

/** How `members` has changed. Above 500 members only `count` does. */
export interface Presence {
  type: "presence";
  channel: string;
  joined: Member[];
  left: Member[];
  count: number;
}

export interface Member {
  /** A user, or a connection where it is anonymous. */
  member: string;
  clients: number;
  info: any;
}

/** `code`: of the service (docs/protocol.md), or `closed`, `stopped`, `timeout`, `user_changed`, `behind`. */
export class TocsinError extends Error {
  readonly code: string;
  /** Seconds after which trying the same again may help. */
  readonly retryAfter?: number;
  /** With `gone`: where to go on. */
  readonly position?: string;
}

/** No answer in time (`publish_timeout`). */
export class PublishTimeout extends TocsinError {
  /** true: it may be published or not; false: it was not sent. */
  readonly sent: boolean;
}

/** As many commands wait as the outbox holds (`outbox_full`). */
export class OutboxFull extends TocsinError {}
