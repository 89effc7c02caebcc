/**
 * The life of one request: its intervals as a bar and as a list, each with its cause.
 */

import { byId, create, setText, swatch } from "./dom.js";
import { duration, milliseconds, percent } from "./format.js";

const REFRESH_MS = 1000;
const LABELLED_SHARE = 0.09; // narrower intervals have no room for a name
const LIVE = ["waiting", "running", "preempted", "swapping_in"]; // every other status is how it ended

export class Timeline {
  #refresh = null;

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./palette.js").Palette} palette
   */
  constructor(api, palette) {
    this.api = api;
    this.palette = palette;
    this.dialog = byId("timeline");
    this.dialog.addEventListener("close", () => clearTimeout(this.#refresh));
    byId("timeline-close").addEventListener("click", () => this.dialog.close());
  }

  /** Open the dialog for a request and follow it until it ends. */
  open(id) {
    clearTimeout(this.#refresh);
    setText(byId("timeline-title"), id);
    for (const part of ["facts", "summary", "bar", "totals", "intervals"]) {
      byId(`timeline-${part}`).replaceChildren();
    }
    if (!this.dialog.open) this.dialog.showModal();
    this.#load(id);
  }

  async #load(id) {
    try {
      const life = await this.api.json(`v1/requests/${encodeURIComponent(id)}/explain`);
      if (!this.#isShowing(id)) return;
      this.#show(life);
      if (LIVE.includes(life.status)) this.#refresh = setTimeout(() => this.#load(id), REFRESH_MS);
    } catch (error) {
      if (this.#isShowing(id)) setText(byId("timeline-summary"), error.message);
    }
  }

  #isShowing(id) {
    return this.dialog.open && byId("timeline-title").textContent === id;
  }

  #show(life) {
    setText(byId("timeline-summary"), life.summary);
    byId("timeline-facts").replaceChildren(
      swatch(this.palette.colorOf(life.tenant)),
      `${life.tenant} · ${life.status} · `,
      create("strong", {}, duration(life.latency_s)),
    );
    byId("timeline-bar").replaceChildren(
      ...life.intervals.map((interval) => barPart(interval, life.latency_s)),
    );
    byId("timeline-totals").replaceChildren(
      ...Object.entries(life.totals).map(([kind, total]) => totalItem(kind, total, life.latency_s)),
    );
    byId("timeline-intervals").replaceChildren(...life.intervals.map(intervalRow));
  }
}

function barPart({ kind, duration_s: length, cause }, latency) {
  const share = latency > 0 ? length / latency : 0;
  const part = create("span", { class: "bar-part", "data-kind": kind });
  part.style.width = `${100 * share}%`;
  part.title = `${kind}: ${milliseconds(1000 * length)}${cause ? `, ${cause}` : ""}`;
  if (share > LABELLED_SHARE) part.append(kind);
  return part;
}

function totalItem(kind, total, latency) {
  const share = create("span", { class: "share" }, latency > 0 ? percent(total / latency) : "");
  const mark = create("span", { class: "swatch", "data-kind": kind, "aria-hidden": "true" });
  return create("li", {}, mark, `${kind} `, create("strong", {}, milliseconds(1000 * total)), share);
}

function intervalRow({ kind, start_s: start, duration_s: length, cause, detail }) {
  const mark = create("span", { class: "swatch", "data-kind": kind, "aria-hidden": "true" });
  return create(
    "tr",
    {},
    create("td", { class: "number" }, `+${milliseconds(1000 * start)}`),
    create("td", { class: "number" }, milliseconds(1000 * length)),
    create("th", { scope: "row" }, mark, kind),
    create("td", {}, [cause, detail].filter(Boolean).join(" · ")),
  );
}
