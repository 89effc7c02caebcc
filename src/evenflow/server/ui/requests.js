/**
 * The table of live requests, and under them of those that ended last.
 */

import { byId, create, reconcile, setText, swatch } from "./dom.js";
import { count, duration } from "./format.js";

const USUAL_PREFIX = /^(chat)?cmpl-/; // says nothing where every row has it
const ORDER = ["running", "swapping_in", "waiting", "preempted"];

export class Requests {
  /** @type {object[]} */
  #live = [];
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
    const ended = new Set(state.ended.map(({ id }) => id)); // one may end between the two lists
    this.#live = state.live.filter(({ id }) => !ended.has(id)).sort(byStatusThenAge);
    this.#ended = state.ended;
    this.#show();
  }

  #show() {
    const shown = [...this.#live, ...this.#ended].filter(({ tenant, id }) => this.focus.includes(tenant, id));
    const build = (request) => this.#buildRow(request);
    reconcile(this.rows, shown, ({ id }) => id, build, updateRow);
    setText(byId("requests-count"), `${count(this.#live.length)} live`);
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
  setText(status.firstChild, request.status.replace("_", " "));
  setText(prompt, promptText(request));
  setText(output, count(request.num_output_tokens));
  setText(blocks, count(request.num_blocks));
  setText(age, duration(request.age_s ?? request.e2e_s));
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
