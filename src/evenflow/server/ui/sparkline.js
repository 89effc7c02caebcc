/**
 * A small line without axes, for the trend behind one number.
 */

import { prepare, resolveColor } from "./canvas.js";

/**
 * @param {HTMLCanvasElement} canvas
 * @param {import("./history.js").History} history
 * @param {(state: object) => number} valueOf
 */
export function drawSparkline(canvas, history, valueOf) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const context = prepare(canvas, width, height);
  const { start, end } = history.span;
  const values = history.states.map(valueOf);
  const top = Math.max(...values) || 1;
  context.beginPath();
  history.states.forEach((state, index) => {
    const x = ((state.at_s - start) / (end - start)) * (width - 2) + 1;
    context.lineTo(x, 1 + (1 - values[index] / top) * (height - 2));
  });
  context.strokeStyle = resolveColor("var(--accent)");
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  context.stroke();
}
