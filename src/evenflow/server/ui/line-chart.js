/**
 * A chart of a few series over the last minutes, with a crosshair that all charts share.
 */

import { prepare, resolveColor } from "./canvas.js";
import { create, setText } from "./dom.js";

const MARGIN = { top: 8, right: 2, bottom: 18, left: 52 };
const GAP_S = 10; // a longer silence is shown as a hole

/**
 * @typedef {object} Series
 * @property {string} label
 * @property {string} color a CSS colour
 * @property {(state: object) => number|null|undefined} value
 */

export class LineChart {
  /** Moment under the crosshair, in the server's seconds. */
  #crosshairS = null;

  /**
   * @param {Element} figure receives caption, legend and canvas
   * @param {object} options
   * @param {string} options.title
   * @param {Series[]} options.series
   * @param {(value: number|null) => string} options.format
   * @param {(value: number) => string} options.formatTick
   * @param {import("./history.js").History} options.history
   * @param {(atS: number|null) => void} options.onCrosshair called when the person moves it
   */
  constructor(figure, { title, series, format, formatTick, history, onCrosshair }) {
    Object.assign(this, { title, series, format, formatTick, history, onCrosshair });
    this.canvas = create("canvas", { tabindex: "0", role: "img" });
    this.readings = series.map(() => create("dd"));
    this.note = create("span", { class: "chart-time" });
    figure.append(
      create("figcaption", {}, create("h3", {}, title), this.note),
      create("dl", { class: "chart-legend" }, ...series.map(this.#legendItem, this)),
      create("div", { class: "chart-box" }, this.canvas),
    );
    this.#listen();
  }

  /** Show or hide the crosshair. */
  set crosshairS(atS) {
    this.#crosshairS = atS;
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const context = prepare(this.canvas, width, height);
    const scale = this.#scale(width, height);
    this.#drawAxes(context, scale, width);
    for (const series of this.series) this.#drawSeries(context, scale, series);
    this.#drawCrosshair(context, scale);
    this.#read();
  }

  #legendItem({ label, color }, index) {
    const line = create("span", { class: "line", "aria-hidden": "true" });
    line.style.setProperty("--color", color);
    return create("div", {}, create("dt", {}, line, label), this.readings[index]);
  }

  #listen() {
    this.canvas.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.onCrosshair(null));
    this.canvas.addEventListener("blur", () => this.onCrosshair(null));
    this.canvas.addEventListener("keydown", (event) => this.#press(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  #point(x) {
    const { span } = this.history;
    const share = (x - MARGIN.left) / (this.canvas.clientWidth - MARGIN.left - MARGIN.right);
    this.onCrosshair(span.start + Math.max(0, Math.min(1, share)) * (span.end - span.start));
  }

  #press(event) {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (direction === undefined) return;
    const { start, end } = this.history.span;
    const moved = (this.#crosshairS ?? end) + (direction * (end - start)) / 60;
    this.onCrosshair(Math.max(start, Math.min(end, moved)));
    event.preventDefault();
  }

  #scale(width, height) {
    const { start, end } = this.history.span;
    const ticks = niceTicks(this.#largest());
    const plotWidth = width - MARGIN.left - MARGIN.right;
    const plotHeight = height - MARGIN.top - MARGIN.bottom;
    return {
      ticks,
      start,
      end,
      x: (atS) => MARGIN.left + ((atS - start) / (end - start)) * plotWidth,
      y: (value) => MARGIN.top + (1 - value / ticks.at(-1)) * plotHeight,
    };
  }

  #largest() {
    let largest = 0;
    for (const state of this.history.states) {
      for (const series of this.series) largest = Math.max(largest, series.value(state) ?? 0);
    }
    return largest;
  }

  #drawAxes(context, scale, width) {
    context.font = `11px ${getComputedStyle(this.canvas).fontFamily}`;
    context.fillStyle = resolveColor("var(--text-faint)");
    context.strokeStyle = resolveColor("var(--rule)");
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const tick of scale.ticks) {
      const y = Math.round(scale.y(tick)) + 0.5;
      context.fillText(this.formatTick(tick), MARGIN.left - 6, y);
      context.beginPath();
      context.moveTo(MARGIN.left, y);
      context.lineTo(width - MARGIN.right, y);
      context.stroke();
    }
    context.textBaseline = "bottom";
    context.textAlign = "left";
    const bottom = this.canvas.clientHeight;
    context.fillText(`−${timeAgo(scale.end - scale.start)}`, MARGIN.left, bottom);
    context.textAlign = "right";
    context.fillText("now", width - MARGIN.right, bottom);
  }

  #drawSeries(context, scale, series) {
    context.strokeStyle = resolveColor(series.color);
    context.lineWidth = 1.75;
    context.lineJoin = "round";
    context.beginPath();
    let previousS = -Infinity;
    for (const state of this.history.states) {
      const value = series.value(state) ?? null;
      if (value === null) continue;
      const isConnected = state.at_s - previousS < GAP_S;
      context[isConnected ? "lineTo" : "moveTo"](scale.x(state.at_s), scale.y(value));
      previousS = state.at_s;
    }
    context.stroke();
  }

  #drawCrosshair(context, scale) {
    if (this.#crosshairS === null || this.history.states.length === 0) return;
    const state = this.history.nearest(this.#crosshairS);
    const x = scale.x(state.at_s);
    context.strokeStyle = resolveColor("var(--text-faint)");
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, MARGIN.top);
    context.lineTo(x, scale.y(0));
    context.stroke();
    for (const series of this.series) {
      const value = series.value(state) ?? null;
      if (value === null) continue;
      context.fillStyle = resolveColor(series.color);
      context.beginPath();
      context.arc(x, scale.y(value), 3.5, 0, 2 * Math.PI);
      context.fill();
    }
  }

  /** Write the values under the crosshair, or else the newest ones, beside the legend. */
  #read() {
    const isLive = this.#crosshairS === null;
    const newest = this.history.states.at(-1);
    const state = isLive || !newest ? newest : this.history.nearest(this.#crosshairS);
    const texts = this.series.map((series) => this.format((state && series.value(state)) ?? null));
    texts.forEach((text, index) => setText(this.readings[index], text));
    setText(this.note, isLive || !newest ? "" : `${timeAgo(newest.at_s - state.at_s)} ago`);
    const values = this.series.map(({ label }, index) => `${label} ${texts[index]}`);
    this.canvas.setAttribute("aria-label", `${this.title}: ${values.join(", ")}`);
  }
}

/** "45 s", "2 min 5 s" */
function timeAgo(seconds) {
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  const rest = whole % 60;
  if (minutes === 0) return `${rest} s`;
  return rest === 0 ? `${minutes} min` : `${minutes} min ${rest} s`;
}

/** Round numbers from zero to at least `largest`, in two to four steps. */
export function niceTicks(largest) {
  const top = largest > 0 ? largest : 1;
  const magnitude = 10 ** Math.floor(Math.log10(top));
  const step = [0.25, 0.5, 1, 2.5].map((factor) => factor * magnitude).find((s) => top / s <= 4);
  return Array.from({ length: Math.ceil(top / step) + 1 }, (_, index) => index * step);
}
