/**
 * Who runs, who waits, and who has had how much: the queue bars and the table of tenants.
 */

import { byId, create, reconcile, setText, swatch } from "./dom.js";
import { compact, count, percent, rate, ratio } from "./format.js";

const LISTED = 12; // tenants can be as many as users; the busiest are shown

export class Tenants {
  /**
   * @param {import("./palette.js").Palette} palette
   * @param {import("./focus.js").Focus} focus
   */
  constructor(palette, focus) {
    this.palette = palette;
    this.focus = focus;
    this.rows = byId("tenant-rows");
    this.bars = { running: byId("bar-running"), waiting: byId("bar-waiting") };
    focus.addEventListener("change", () => this.#markFocus());
  }

  update(state) {
    const tenants = [...state.tenants].sort(byActivity);
    const most = Math.max(1, state.requests.running, state.requests.waiting);
    for (const [kind, bar] of Object.entries(this.bars)) {
      this.#updateBar(bar, tenants, kind, most);
      setText(byId(`count-${kind}`), count(state.requests[kind]));
    }
    this.#updateTable(tenants.slice(0, LISTED));
    setText(byId("tenants-more"), moreText(tenants.length - LISTED));
    setText(byId("jain"), ratio(state.jain_index));
    setText(byId("gap"), compact(state.service_gap_tokens));
  }

  #updateBar(bar, tenants, kind, most) {
    const present = tenants.filter((tenant) => tenant[kind] > 0);
    const build = ({ id }) => {
      const part = create("span", { class: "bar-part" });
      part.style.setProperty("--color", this.palette.colorOf(id));
      return part;
    };
    const update = (part, tenant) => {
      part.style.width = `${(100 * tenant[kind]) / most}%`;
      part.title = `${tenant.id}: ${count(tenant[kind])}`;
    };
    reconcile(bar, present, ({ id }) => id, build, update);
    const shares = present.map((tenant) => `${tenant.id} ${tenant[kind]}`);
    bar.setAttribute("aria-label", `${kind}: ${shares.join(", ") || "nobody"}`);
  }

  #updateTable(tenants) {
    const most = Math.max(1, ...tenants.map(servicePerWeight));
    const build = (tenant) => this.#buildRow(tenant);
    reconcile(this.rows, tenants, ({ id }) => id, build, (row, tenant) => {
      const [, running, waiting, speed, service, slo] = row.children;
      setText(running, count(tenant.running));
      setText(waiting, count(tenant.waiting));
      setText(speed, rate(tenant.tokens_per_s));
      service.firstChild.firstChild.style.width = `${(100 * servicePerWeight(tenant)) / most}%`;
      setText(service.lastChild, compact(servicePerWeight(tenant)));
      setText(slo, sloText(tenant.slo_attainment));
    });
    this.#markFocus();
  }

  #buildRow({ id, weight }) {
    const button = create("button", { class: "link", type: "button", "aria-pressed": "false" });
    button.append(swatch(this.palette.colorOf(id)), create("span", { class: "name" }, id));
    if (weight !== 1) button.append(create("span", { class: "weight" }, `×${weight}`));
    button.title = `Show only ${id}`;
    button.addEventListener("click", () => this.focus.toggleTenant(id));
    const fill = create("span", { class: "meter-fill" });
    fill.style.setProperty("--color", this.palette.colorOf(id));
    const meter = create("span", { class: "meter" }, fill);
    return create(
      "tr",
      {},
      create("th", { scope: "row" }, button),
      create("td"),
      create("td"),
      create("td"),
      create("td", { class: "service" }, meter, create("span", { class: "service-value" })),
      create("td", { class: "slo" }),
    );
  }

  #markFocus() {
    for (const row of this.rows.children) {
      const isPressed = row.dataset.key === this.focus.tenant;
      row.querySelector("button").setAttribute("aria-pressed", String(isPressed));
    }
  }
}

const servicePerWeight = ({ service_tokens: service, weight }) => service / weight;

/** Busy tenants first, then by weight and name, so that rows keep their place. */
function byActivity(one, other) {
  const busy = (tenant) => Number(tenant.running + tenant.waiting > 0);
  return (
    busy(other) - busy(one) || other.weight - one.weight || one.id.localeCompare(other.id, "en")
  );
}

/** Attainment of the targets for the first token and for the following ones. */
function sloText(attainment) {
  const { ttft, tpot } = attainment ?? {};
  return `${percent(ttft)} · ${percent(tpot)}`;
}

function moreText(hidden) {
  return hidden > 0 ? `and ${count(hidden)} more` : "";
}
