/**
 * Calls to the server that served this page, with the API key when there is one.
 *
 * The key lives in sessionStorage: it ends with the tab and never goes into a URL.
 */

const KEY_NAME = "evenflow-api-key";

/** The server answered, but not with what was asked for. */
export class ApiError extends Error {
  /**
   * @param {number} status HTTP status
   * @param {string} message what the server said
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Emits "key" when the API key changes. */
export class Api extends EventTarget {
  /** @param {URL} root where the server's paths start; the page itself is at `ui/` below it */
  constructor(root) {
    super();
    this.root = root;
  }

  get key() {
    return sessionStorage.getItem(KEY_NAME) ?? "";
  }

  set key(value) {
    if (value) sessionStorage.setItem(KEY_NAME, value);
    else sessionStorage.removeItem(KEY_NAME);
    this.dispatchEvent(new Event("key"));
  }

  /**
   * Call the server.
   * @param {string} path relative to the root
   * @param {RequestInit} options
   * @returns {Promise<Response>} whose status is a success
   * @throws {ApiError} for every other status
   */
  async call(path, options = {}) {
    const headers = new Headers(options.headers);
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    const response = await fetch(new URL(path, this.root), { ...options, headers, cache: "no-store" });
    if (!response.ok) throw new ApiError(response.status, await errorMessage(response));
    return response;
  }

  /** Call the server and return the JSON it answers. */
  async json(path, options) {
    return (await this.call(path, options)).json();
  }
}

/** What an error response says, in OpenAI's body or any other. */
async function errorMessage(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text.slice(0, 200) || `the server answered ${response.status}`;
  }
}
