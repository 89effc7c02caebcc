/**
 * The block map: every KV block a cell, coloured by tenant, explored with mouse, finger or keys.
 */

import { blockAt, fitGrid, rowTop, runIndexAt } from "./block-grid.js";
import { STATES, outlineRun, paintBlocks, paintRun } from "./block-painter.js";
import { onThemeChange, prepare, resolveColor } from "./canvas.js";
import { byId, create, setText } from "./dom.js";
import { blockRange } from "./format.js";

const GUTTER_PX = 40;
const ROW_NUMBERS_PX = 44; // between two numbers beside the rows
const NUMBER_PX = 11;
const NOBODY = "var(--nobody)";
const STATE_TEXT = {
  free: "free",
  used: "in use",
  reserved: "reserved to grow into",
  cached: "cached, may be evicted",
  pinned: "pinned",
};
const NO_BLOCKS = { num_blocks: 0, block_size: 0, runs: [], tenants: [], requests: [] };

export class BlockMap {
  #blocks = NO_BLOCKS;
  #grid = fitGrid(0, 1, 1);
  /** The block under the pointer or chosen with the keys. */
  #cursor = null;

  /**
   * @param {import("./palette.js").Palette} palette
   * @param {import("./focus.js").Focus} focus
   */
  constructor(palette, focus) {
    this.palette = palette;
    this.focus = focus;
    this.box = byId("map-box");
    this.canvas = byId("map");
    this.tooltip = byId("map-tooltip");
    this.#listen();
    this.draw();
  }

  /** Show what `/ui/blocks` answered. */
  update(blocks) {
    this.#blocks = blocks;
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: boxHeight } = this.box;
    this.#grid = fitGrid(this.#blocks.num_blocks, width - GUTTER_PX, boxHeight);
    const height = Math.max(boxHeight, rowTop(this.#grid, this.#grid.rows));
    this.canvas.style.height = `${height}px`;
    const context = prepare(this.canvas, width, height);
    this.#drawRowNumbers(context);
    context.translate(GUTTER_PX, 0);
    paintBlocks(context, {
      grid: this.#grid,
      runs: this.#blocks.runs,
      colorOf: (run) => this.#colorOf(run),
      isFocused: (run) => this.focus.includes(this.#tenantOf(run), this.#requestOf(run)),
    });
    this.#drawCursor(context);
  }

  #listen() {
    this.canvas.addEventListener("pointermove", (event) => this.#pointAt(event));
    this.canvas.addEventListener("pointerdown", (event) => this.#pointAt(event));
    this.canvas.addEventListener("pointerleave", () => this.#moveCursor(null));
    this.canvas.addEventListener("blur", () => this.#moveCursor(null));
    this.canvas.addEventListener("click", () => this.#select());
    this.canvas.addEventListener("keydown", (event) => this.#press(event));
    this.focus.addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.box);
    onThemeChange(() => {
      this.draw();
      this.#drawLegend();
    });
    this.#drawLegend();
  }

  get #cursorRun() {
    const { runs, num_blocks: numBlocks } = this.#blocks;
    if (this.#cursor === null || this.#cursor >= numBlocks) return null;
    return runs[runIndexAt(runs, this.#cursor)];
  }

  #tenantOf(run) {
    return this.#blocks.tenants[run[3]] ?? null;
  }

  #requestOf(run) {
    return this.#blocks.requests[run[4]] ?? null;
  }

  #colorOf(run) {
    const tenant = this.#tenantOf(run);
    return tenant === null ? NOBODY : this.palette.colorOf(tenant);
  }

  #pointAt(event) {
    const x = event.offsetX - GUTTER_PX;
    this.#moveCursor(blockAt(this.#grid, this.#blocks.num_blocks, x, event.offsetY));
  }

  #moveCursor(block) {
    if (block === this.#cursor) return;
    this.#cursor = block;
    this.draw();
  }

  /** Arrow keys go from run to run and from row to row; Enter selects, Escape lets go. */
  #press(event) {
    const run = this.#cursorRun ?? [0, 0];
    const { columns } = this.#grid;
    const target = {
      ArrowRight: run[0] + run[1],
      ArrowLeft: this.#runBefore(run[0]),
      ArrowDown: (this.#cursor ?? -columns) + columns,
      ArrowUp: (this.#cursor ?? 0) - columns,
    }[event.key];
    if (event.key === "Enter") this.#select();
    else if (event.key === "Escape") this.focus.clear();
    else if (target === undefined) return;
    else if (target >= 0 && target < this.#blocks.num_blocks) this.#moveCursor(target);
    event.preventDefault();
  }

  #runBefore(block) {
    const { runs } = this.#blocks;
    return block === 0 ? 0 : runs[runIndexAt(runs, block - 1)][0];
  }

  #select() {
    const run = this.#cursorRun;
    const request = run && this.#requestOf(run);
    if (request) this.focus.selectRequest(request);
    else this.focus.clear();
  }

  #drawRowNumbers(context) {
    const { rows, columns, rowPitch } = this.#grid;
    const step = Math.ceil(ROW_NUMBERS_PX / rowPitch);
    context.font = `${NUMBER_PX}px ${getComputedStyle(this.canvas).fontFamily}`;
    context.fillStyle = resolveColor("var(--text-faint)");
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (let row = 0; row < rows; row += step) {
      const y = Math.max((row + 0.5) * rowPitch, NUMBER_PX / 2);
      context.fillText(String(row * columns), GUTTER_PX - 8, y);
    }
  }

  #drawCursor(context) {
    const run = this.#cursorRun;
    this.tooltip.hidden = run === null;
    if (run === null) return;
    outlineRun(context, this.#grid, run);
    const [start, length, state] = run;
    const request = this.#requestOf(run);
    const lines = [
      `${length === 1 ? "Block" : "Blocks"} ${blockRange(start, length)}`,
      STATE_TEXT[STATES[state]],
      this.#tenantOf(run) ?? "",
      request ?? "",
    ];
    for (const [index, line] of lines.entries()) setText(this.tooltip.children[index], line);
    this.#placeTooltip();
  }

  /** Put the tooltip below the cursor's block, or above it where there is no room, inside the box. */
  #placeTooltip() {
    const { columns, pitch, rowPitch } = this.#grid;
    const x = GUTTER_PX + (this.#cursor % columns) * pitch;
    const y = rowTop(this.#grid, Math.floor(this.#cursor / columns));
    const { offsetWidth: width, offsetHeight: height } = this.tooltip;
    const left = Math.max(0, Math.min(x - width / 2, this.box.clientWidth - width));
    const below = y + rowPitch + 8;
    const top = below + height > this.canvas.clientHeight ? y - height - 8 : below;
    this.tooltip.style.transform = `translate(${left}px, ${top}px)`;
  }

  /** The legend is painted by the painter of the map itself. */
  #drawLegend() {
    const samples = STATES.map((name, state) => {
      const canvas = create("canvas", { "aria-hidden": "true" });
      const grid = { columns: 2, rows: 1, pitch: 13, rowPitch: 13 };
      paintRun(prepare(canvas, 26, 13), grid, [0, 2, state], resolveColor("var(--text-soft)"));
      return create("li", {}, canvas, name, create("span", { id: `blocks-${name}` }));
    });
    byId("map-legend").replaceChildren(...samples);
  }
}
