/**
 * The strip of numbers at the top.
 */

import { onThemeChange } from "./canvas.js";
import { byId, create, setText } from "./dom.js";
import { compact, count, percent, rate } from "./format.js";
import { drawSparkline } from "./sparkline.js";

/**
 * @typedef {object} Stat
 * @property {string} id
 * @property {string} label
 * @property {(state: object) => string} text
 * @property {(state: object) => string} note
 * @property {(state: object) => number} [trend] what the line shows; sums that only grow have none
 */

/** @type {Stat[]} */
const STATS = [
  {
    id: "running",
    label: "Running",
    text: (state) => count(state.requests.running),
    note: (state) => `${rate(state.throughput.steps_per_s)} steps/s`,
    trend: (state) => state.requests.running,
  },
  {
    id: "waiting",
    label: "Waiting",
    text: (state) => count(state.requests.waiting),
    note: (state) => `${count(state.requests.rejected)} rejected`,
    trend: (state) => state.requests.waiting,
  },
  {
    id: "generation",
    label: "Output tokens/s",
    text: (state) => rate(state.throughput.generation_tokens_per_s),
    note: () => "generated",
    trend: (state) => state.throughput.generation_tokens_per_s,
  },
  {
    id: "prompt",
    label: "Prompt tokens/s",
    text: (state) => rate(state.throughput.prompt_tokens_per_s),
    note: (state) => `${percent(state.kv?.prefix_hit_ratio)} prefix hits`,
    trend: (state) => state.throughput.prompt_tokens_per_s,
  },
  {
    id: "usage",
    label: "KV memory",
    text: (state) => percent(state.kv?.usage_ratio),
    note: (state) => `${count(state.kv?.free)} blocks free`,
    trend: (state) => state.kv?.usage_ratio ?? 0,
  },
  {
    id: "preemptions",
    label: "Preemptions",
    text: (state) => compact(state.preemptions),
    note: ({ switching }) =>
      `${count(switching?.swapped)} off the device, ${count(switching?.arriving)} arriving`,
  },
  {
    id: "finished",
    label: "Finished",
    text: (state) => compact(state.requests.finished),
    note: (state) =>
      `${compact(state.requests.failed)} failed, ${compact(state.requests.aborted)} aborted`,
  },
];

export class Overview {
  /** @param {import("./history.js").History} history */
  constructor(history) {
    this.history = history;
    this.tiles = STATS.map(buildTile);
    byId("overview").append(...this.tiles.map((tile) => tile.root));
    onThemeChange(() => this.#drawTrends());
  }

  update(state) {
    STATS.forEach((stat, index) => {
      setText(this.tiles[index].value, stat.text(state));
      setText(this.tiles[index].note, stat.note(state));
    });
    this.#drawTrends();
  }

  #drawTrends() {
    STATS.forEach(({ trend }, index) => {
      if (trend) drawSparkline(this.tiles[index].canvas, this.history, trend);
    });
  }
}

function buildTile({ id, label, trend }) {
  const value = create("dd", { class: "stat-value", id: `stat-${id}` }, "–");
  const note = create("dd", { class: "stat-note" }, "\u00a0");
  const canvas = create("canvas", { "aria-hidden": "true" });
  const root = create("div", { class: "stat" }, create("dt", {}, label), value, note);
  if (trend) root.append(canvas);
  return { root, value, note, canvas };
}
