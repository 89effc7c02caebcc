/**
 * Charts of latency percentiles and of the parts of a step.
 */

import { onThemeChange } from "./canvas.js";
import { byId, create } from "./dom.js";
import { milliseconds, roundMilliseconds } from "./format.js";
import { LineChart } from "./line-chart.js";

const percentiles = (name) =>
  ["p50", "p90", "p99"].map((key, index) => ({
    label: key,
    color: `var(--chart-${index})`,
    value: (state) => state.latency[name]?.[key],
  }));

const steps = ["schedule", "execute", "update", "emit"].map((key, index) => ({
  label: key,
  color: `var(--chart-${index})`,
  value: (state) => state.step_ms?.[key],
}));

const CHARTS = [
  { title: "Time to first token", series: percentiles("ttft_ms") },
  { title: "Inter-token latency", series: percentiles("itl_ms") },
  { title: "End to end", series: percentiles("e2e_ms") },
  { title: "Time per step", series: steps },
];

export class Latency {
  /** @param {import("./history.js").History} history */
  constructor(history) {
    this.charts = CHARTS.map(({ title, series }) => {
      const figure = byId("charts").appendChild(create("figure", { class: "panel chart" }));
      return new LineChart(figure, {
        title,
        series,
        history,
        format: milliseconds,
        formatTick: roundMilliseconds,
        onCrosshair: (atS) => this.#moveCrosshair(atS),
      });
    });
    onThemeChange(() => this.update());
  }

  /** Draw what the history holds now. */
  update() {
    for (const chart of this.charts) chart.draw();
  }

  #moveCrosshair(atS) {
    for (const chart of this.charts) chart.crosshairS = atS;
  }
}
