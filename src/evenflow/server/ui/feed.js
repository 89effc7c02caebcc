/**
 * The live state: one stream of events that comes back by itself when it is lost.
 *
 *     connecting ──first event──▶ live ──error or silence──▶ lost ──back-off──▶ connecting
 *          └──────────401──────▶ locked ──new key──▶ connecting
 */

import { readEvents } from "./sse.js";

const SILENCE_MS = 20_000; // events come every 500 ms, but wait for the engine's step to end
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 15_000;

/**
 * @typedef {"connecting"|"live"|"lost"|"locked"} Connection
 */

export class Feed {
  #retryMs = FIRST_RETRY_MS;

  /**
   * @param {import("./api.js").Api} api
   * @param {(state: object) => void} onState
   * @param {(connection: Connection, retryMs: number) => void} onConnection
   */
  constructor(api, onState, onConnection) {
    this.api = api;
    this.onState = onState;
    this.onConnection = onConnection;
  }

  /** Listen for ever. */
  async run() {
    for (;;) {
      const error = await this.#listen();
      const locked = error?.status === 401 || error?.status === 403;
      this.onConnection(locked ? "locked" : "lost", this.#retryMs);
      if (locked) await nextEvent(this.api, "key");
      else await this.#backOff();
      this.onConnection("connecting", 0);
    }
  }

  /** Listen until the stream ends. Returns why it ended, if it was an error. */
  async #listen() {
    const abort = new AbortController();
    let silence = setTimeout(() => abort.abort(), SILENCE_MS);
    try {
      const response = await this.api.call("ui/events", { signal: abort.signal });
      for await (const data of readEvents(response.body)) {
        clearTimeout(silence);
        silence = setTimeout(() => abort.abort(), SILENCE_MS);
        this.#retryMs = FIRST_RETRY_MS;
        this.onConnection("live", 0);
        this.onState(JSON.parse(data));
      }
      return null;
    } catch (error) {
      return error;
    } finally {
      clearTimeout(silence);
    }
  }

  /** Wait before the next attempt, longer each time; not at all once the network is back. */
  async #backOff() {
    const waitMs = this.#retryMs;
    this.#retryMs = Math.min(2 * waitMs, LAST_RETRY_MS);
    await Promise.race([
      new Promise((resolve) => setTimeout(resolve, waitMs)),
      nextEvent(window, "online"),
    ]);
  }
}

/** A promise of the next event of a kind. */
function nextEvent(target, kind) {
  return new Promise((resolve) => target.addEventListener(kind, resolve, { once: true }));
}
