/**
 * A chat with the model: streams answers, can stop them, and says how fast they came.
 */

import { byId, create, setText } from "./dom.js";
import { milliseconds, rate } from "./format.js";
import { readEvents } from "./sse.js";

export class Chat {
  #model = "";
  /** @type {{role: string, content: string}[]} */
  #messages = [];
  /** @type {AbortController|null} set while an answer streams */
  #abort = null;

  /**
   * @param {import("./api.js").Api} api
   * @param {object} callbacks
   * @param {() => void} callbacks.onLocked called when the server wants an API key
   * @param {(id: string) => void} callbacks.onOpen called to show the timeline of a request
   */
  constructor(api, { onLocked, onOpen }) {
    this.api = api;
    this.onLocked = onLocked;
    this.onOpen = onOpen;
    this.log = byId("chat-log");
    this.input = byId("chat-input");
    byId("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    byId("chat-stop").addEventListener("click", () => this.#abort?.abort());
    byId("chat-clear").addEventListener("click", () => this.#clear());
  }

  /** The model to ask; nothing can be sent before it is known. */
  set model(name) {
    this.#model = name;
    byId("chat-send").disabled = false;
  }

  #clear() {
    this.#abort?.abort();
    this.#messages = [];
    this.log.replaceChildren();
  }

  async #send() {
    const content = this.input.value.trim();
    if (!content || !this.#model || this.#abort) return;
    this.input.value = "";
    this.#messages.push({ role: "user", content });
    this.log.append(create("div", { class: "message user" }, content));
    await this.#answer(new Answer(this.log, this.onOpen), this.#messages);
  }

  /** Stream an answer to the messages; what came before a stop or an error stays. */
  async #answer(answer, messages) {
    this.#abort = new AbortController();
    this.#showBusy(true);
    try {
      await answer.read(await this.#request(messages));
    } catch (error) {
      if (error.status === 401) this.onLocked();
      answer.fail(error.name === "AbortError" ? "stopped" : error.message);
    } finally {
      this.#abort = null;
      this.#showBusy(false);
      if (answer.text) messages.push({ role: "assistant", content: answer.text });
    }
  }

  #request(messages) {
    return this.api.call("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      signal: this.#abort.signal,
      body: JSON.stringify({
        model: this.#model,
        messages,
        max_tokens: byId("chat-max-tokens").valueAsNumber,
        temperature: byId("chat-temperature").valueAsNumber,
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
  }

  #showBusy(isBusy) {
    byId("chat-send").hidden = isBusy;
    byId("chat-stop").hidden = !isBusy;
    this.log.setAttribute("aria-busy", String(isBusy));
  }
}

/** One answer on the page, as it arrives. */
class Answer {
  text = "";
  #id = null;
  #numTokens = 0;
  #sentMs = performance.now();
  #firstMs = null;

  constructor(log, onOpen) {
    this.log = log;
    this.onOpen = onOpen;
    this.body = create("div", { class: "message-text" });
    this.facts = create("span", {}, "waiting");
    this.footer = create("div", { class: "message-facts" }, this.facts);
    log.append(create("div", { class: "message assistant" }, this.body, this.footer));
    this.#scroll();
  }

  /** Take in a streamed response until it ends. */
  async read(response) {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") break;
      this.#take(JSON.parse(data));
    }
    this.#showFacts("");
  }

  /** Say why nothing more will come. */
  fail(reason) {
    this.#showFacts(reason);
  }

  #take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    if (this.#id === null) this.#identify(chunk.id);
    const piece = chunk.choices[0]?.delta.content;
    if (piece) {
      this.#firstMs ??= performance.now();
      this.#numTokens += 1;
      this.text += piece;
      this.body.append(piece);
      this.#scroll();
    }
    if (chunk.usage) this.#numTokens = chunk.usage.completion_tokens;
    this.#showFacts("");
  }

  #showFacts(reason) {
    setText(this.facts, [...this.#speed(), reason].filter(Boolean).join(" · ") || "waiting");
  }

  /** The time to the first token, and the rate of those after it. */
  #speed() {
    if (this.#firstMs === null) return [];
    const elapsedS = (performance.now() - this.#firstMs) / 1000;
    const speed = this.#numTokens > 1 ? (this.#numTokens - 1) / elapsedS : null;
    return [
      `${this.#numTokens} tokens`,
      `${rate(speed)} tokens/s`,
      `first after ${milliseconds(this.#firstMs - this.#sentMs)}`,
    ];
  }

  #identify(id) {
    this.#id = id;
    const button = create("button", { class: "link", type: "button" }, "Timeline");
    button.addEventListener("click", () => this.onOpen(id));
    this.footer.append(button);
  }

  #scroll() {
    this.log.scrollTop = this.log.scrollHeight;
  }
}
