/**
 * The table of live requests, and of those that ended while this page was open.
 */

import { byId, create, reconcile, setText, swatch } from "./dom.js";
import { count, duration } from "./format.js";

const KEPT_ENDED = 40;
const USUAL_PREFIX = /^(chat)?cmpl-/; // says nothing where every row has it
const ORDER = ["running", "waiting", "preempted", "ended"];

export class Requests {
  /** @type {Map<string, object>} by id, as last seen */
  #live = new Map();
  /** @type {object[]} newest first */
  #ended = [];

  /**
   * @param {import("./palette.js").Palette} palette
   * @param {import("./focus.js").Focus} focus
   * @param {(id: string) => void} onOpen
   */
  constructor(palette, focus, onOpen) {
    this.palette = palette;
    this.focus = focus;
    this.onOpen = onOpen;
    this.rows = byId("request-rows");
    focus.addEventListener("change", () => this.#show());
  }

  update(state) {
    const live = new Map(state.live.map((request) => [request.id, request]));
    const gone = [...this.#live.values()].filter((request) => !live.has(request.id));
    const ended = gone.map((request) => ({ ...request, status: "ended", waiting_for: null }));
    this.#ended = [...ended, ...this.#ended].slice(0, KEPT_ENDED);
    this.#live = live;
    this.#show();
  }

  #show() {
    const all = [...[...this.#live.values()].sort(byStatusThenAge), ...this.#ended];
    const shown = all.filter(({ tenant, id }) => this.focus.includes(tenant, id));
    const build = (request) => this.#buildRow(request);
    reconcile(this.rows, shown, ({ id }) => id, build, updateRow);
    setText(byId("requests-count"), `${count(this.#live.size)} live`);
    byId("requests-empty").hidden = shown.length > 0;
  }

  #buildRow({ id, tenant }) {
    const shortId = id.replace(USUAL_PREFIX, "");
    const button = create("button", { class: "link mono", type: "button", title: id }, shortId);
    const name = create("span", { class: "name" }, tenant);
    const row = create(
      "tr",
      {},
      create("th", { scope: "row" }, button),
      create("td", {}, swatch(this.palette.colorOf(tenant)), name),
      create("td", {}, create("span", { class: "status" })),
      create("td", { class: "number wide" }),
      create("td", { class: "number" }),
      create("td", { class: "number wide" }),
      create("td", { class: "number wide" }),
      create("td", { class: "wide" }),
    );
    row.addEventListener("click", () => this.onOpen(id));
    return row;
  }
}

function updateRow(row, request) {
  const [, , status, prompt, output, blocks, age, waitingFor] = row.children;
  status.firstChild.dataset.status = request.status;
  setText(status.firstChild, request.status);
  setText(prompt, promptText(request));
  setText(output, count(request.num_output_tokens));
  setText(blocks, count(request.num_blocks));
  setText(age, duration(request.age_s));
  setText(waitingFor, request.waiting_for ?? "");
}

/** Prompt tokens, and while they are being computed, how many are. */
function promptText({ num_prompt_tokens: all, num_computed_tokens: done, status }) {
  const isPrefilling = status === "running" && done < all;
  return isPrefilling ? `${count(done)} / ${count(all)}` : count(all);
}

function byStatusThenAge(one, other) {
  const rank = ({ status }) => ORDER.indexOf(status);
  return rank(one) - rank(other) || other.age_s - one.age_s;
}
