/**
 * What every canvas needs: sharp pixels, and the page's colours, which CSS alone knows.
 */

/**
 * Give a canvas a size in CSS pixels and as many real pixels as the screen has.
 * @returns {CanvasRenderingContext2D} cleared, in CSS pixels
 */
export function prepare(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const realWidth = Math.round(width * scale);
  const realHeight = Math.round(height * scale);
  if (canvas.width !== realWidth || canvas.height !== realHeight) {
    canvas.width = realWidth;
    canvas.height = realHeight;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

const probe = document.body.appendChild(document.createElement("span"));
probe.hidden = true;
const resolved = new Map();

/** A CSS colour, such as `var(--text)`, in a form that a canvas takes, under the theme of now. */
export function resolveColor(color) {
  if (!resolved.has(color)) {
    probe.style.color = color;
    resolved.set(color, getComputedStyle(probe).color);
  }
  return resolved.get(color);
}

/** Call back when the theme changes, with all colours to be resolved anew. */
export function onThemeChange(callback) {
  const changed = () => {
    resolved.clear();
    callback();
  };
  window.addEventListener("themechange", changed);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}
