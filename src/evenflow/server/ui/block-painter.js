/**
 * Paints the block map: one joined shape per run, gaps between runs, a texture per state.
 *
 *     free       a faint hollow           used      solid
 *     reserved   an outline               cached    hatched
 *     pinned     solid with a dot in each block
 *
 * What a request uses of a group and what it has reserved behind it are joined: they are one group.
 */

import { resolveColor } from "./canvas.js";
import { pieces, rowTop } from "./block-grid.js";

export const STATES = ["free", "used", "reserved", "cached", "pinned"];
const [FREE, USED, RESERVED, CACHED, PINNED] = STATES.keys();

const CLOSED = { left: false, right: false };
const HATCH_PX = 5;
const DIVIDED_PITCH = 7; // below it, lines between blocks would hide the blocks
const DIMMED = 0.16;

/**
 * @typedef {object} Scene
 * @property {import("./block-grid.js").Grid} grid
 * @property {number[][]} runs
 * @property {(run: number[]) => string} colorOf a CSS colour
 * @property {(run: number[]) => boolean} isFocused whether a run stands out
 */

/** @param {CanvasRenderingContext2D} context @param {Scene} scene */
export function paintBlocks(context, scene) {
  const { grid, runs } = scene;
  runs.forEach((run, index) => {
    context.globalAlpha = scene.isFocused(run) || run[2] === FREE ? 1 : DIMMED;
    const open = {
      left: isReservedBehind(runs[index - 1], run),
      right: isReservedBehind(run, runs[index + 1]),
    };
    paintRun(context, grid, run, resolveColor(scene.colorOf(run)), open);
  });
  context.globalAlpha = 1;
}

/** Whether the later of two neighbouring runs is the reserved rest of the earlier one's group. */
function isReservedBehind(earlier, later) {
  if (!earlier || !later) return false;
  return later[2] === RESERVED && earlier[2] === USED && earlier[4] === later[4];
}

/**
 * Paint one run.
 * @param {CanvasRenderingContext2D} context
 * @param {import("./block-grid.js").Grid} grid
 * @param {number[]} run
 * @param {string} color resolved
 * @param {{left: boolean, right: boolean}} open the ends at which it goes on as another run
 */
export function paintRun(context, grid, [start, length, state], color, open = CLOSED) {
  for (const piece of pieces(grid, start, length)) {
    piece.isFirst &&= !open.left;
    piece.isLast &&= !open.right;
    tracePiece(context, grid, piece, state === RESERVED ? 0.75 : 0);
    fillPiece(context, state, color);
    if (grid.pitch >= DIVIDED_PITCH) divide(context, grid, piece, state);
    if (state === PINNED) dot(context, grid, piece);
  }
}

/** Draw a frame around a run. */
export function outlineRun(context, grid, [start, length]) {
  context.strokeStyle = resolveColor("var(--text)");
  context.lineWidth = 2;
  for (const piece of pieces(grid, start, length)) {
    tracePiece(context, grid, piece, 0);
    context.stroke();
  }
}

/** Trace a piece: round where its run begins and ends, open to the edge where a row cuts it. */
function tracePiece(context, grid, piece, inset) {
  const { pitch } = grid;
  const gap = pitch >= DIVIDED_PITCH ? 1 : 0.5;
  const left = piece.column * pitch + (piece.isFirst ? gap : 0) + inset;
  const right = (piece.column + piece.length) * pitch - (piece.isLast ? gap : 0) - inset;
  const top = rowTop(grid, piece.row) + gap + inset;
  const height = rowTop(grid, piece.row + 1) - gap - inset - top;
  const radius = Math.min(4, pitch / 4);
  const start = piece.isFirst ? radius : 0;
  const end = piece.isLast ? radius : 0;
  context.beginPath();
  context.roundRect(left, top, right - left, height, [start, end, end, start]);
}

function fillPiece(context, state, color) {
  if (state === CACHED) {
    context.fillStyle = hatch(context, color);
    context.fill();
    return;
  }
  context.fillStyle = state === FREE ? resolveColor("var(--cell)") : color;
  const alpha = context.globalAlpha;
  if (state === RESERVED) context.globalAlpha = alpha * 0.18;
  context.fill();
  context.globalAlpha = alpha;
  if (state !== RESERVED) return;
  context.strokeStyle = color;
  context.lineWidth = 1.25;
  context.stroke();
}

/** Lines between the blocks of a piece. */
function divide(context, grid, piece, state) {
  const top = rowTop(grid, piece.row) + 1;
  const bottom = rowTop(grid, piece.row + 1) - 1;
  context.beginPath();
  for (let index = 1; index < piece.length; index += 1) {
    const x = (piece.column + index) * grid.pitch;
    context.moveTo(x, top);
    context.lineTo(x, bottom);
  }
  context.strokeStyle = resolveColor(state === FREE ? "var(--surface)" : "var(--divider)");
  context.lineWidth = 1;
  context.stroke();
}

function dot(context, { pitch, rowPitch }, piece) {
  const size = Math.max(1, pitch * 0.17);
  const y = (piece.row + 0.5) * rowPitch;
  context.beginPath();
  for (let index = 0; index < piece.length; index += 1) {
    const x = (piece.column + index + 0.5) * pitch;
    context.moveTo(x + size, y);
    context.arc(x, y, size, 0, 2 * Math.PI);
  }
  context.fillStyle = resolveColor("var(--surface)");
  context.fill();
}

const hatches = new Map();

/** A diagonal hatch in a colour, sharp on this screen. */
function hatch(context, color) {
  const scale = window.devicePixelRatio || 1;
  const key = `${color}@${scale}`;
  if (!hatches.has(key)) {
    const pattern = context.createPattern(hatchTile(color, scale), "repeat");
    pattern.setTransform(new DOMMatrix().scale(1 / scale));
    hatches.set(key, pattern);
  }
  return hatches.get(key);
}

function hatchTile(color, scale) {
  const size = Math.round(HATCH_PX * scale);
  const tile = new OffscreenCanvas(size, size);
  const context = tile.getContext("2d");
  context.globalAlpha = 0.22;
  context.fillStyle = color;
  context.fillRect(0, 0, size, size);
  context.globalAlpha = 0.8;
  context.strokeStyle = color;
  context.lineWidth = 1.2 * scale;
  for (const shift of [-size, 0, size]) {
    context.moveTo(shift, size);
    context.lineTo(shift + size, 0);
  }
  context.stroke();
  return tile;
}
