/**
 * Numbers as people read them. A missing number is an en dash.
 */

const NOTHING = "–";
const plain = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

const orNothing = (format) => (value) =>
  value === null || value === undefined || !Number.isFinite(value) ? NOTHING : format(value);

/** 12345 → "12,345" */
export const count = orNothing((value) => plain.format(value));

/** 41234 → "41.2K" */
export const compact = orNothing((value) => short.format(value));

/** 0.427 → "43%" */
export const percent = orNothing((value) => `${Math.round(value * 100)}%`);

/** 8.42 → "8.4", 132.4 → "132" */
export const rate = orNothing((value) => (value < 10 ? value.toFixed(1) : count(value)));

/** 0.98765 → "0.988" */
export const ratio = orNothing((value) => value.toFixed(3));

/** Milliseconds with a unit that fits: 0.42 → "0.42 ms", 1240 → "1.24 s" */
export const milliseconds = orNothing((value) => {
  if (value === 0) return "0 ms";
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  if (value >= 100) return `${value.toFixed(0)} ms`;
  if (value >= 10) return `${value.toFixed(1)} ms`;
  return `${value.toFixed(2)} ms`;
});

/** A round number of milliseconds, as short as it can be: 250 → "250 ms", 2500 → "2.5 s" */
export function roundMilliseconds(value) {
  if (value === 0) return "0";
  const [number, unit] = value < 1000 ? [value, "ms"] : [value / 1000, "s"];
  return `${Number(number.toPrecision(3))} ${unit}`;
}

/** Seconds with units that fit: 75 → "1 min 15 s" */
export const duration = orNothing((value) => {
  if (value < 60) return `${value.toFixed(1)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(value % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
});

/** The block numbers of a run: "128–143" */
export function blockRange(start, length) {
  return length === 1 ? String(start) : `${start}–${start + length - 1}`;
}
