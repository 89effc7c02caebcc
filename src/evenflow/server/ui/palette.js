/**
 * A colour for each tenant.
 *
 * The eight base colours were searched for the largest smallest distance (Oklab) between any two, as
 * seen with normal sight, protanopia, deuteranopia and tritanopia, in both themes. A name's hash says
 * which one it would like; a tenant that finds it taken gets the next free one and keeps it. Beyond
 * eight tenants the hues come again, paler and then deeper.
 */

/** Lightness, chroma, hue, in the dark theme. */
const BASE = [
  [0.756, 0.115, 237],
  [0.84, 0.135, 88],
  [0.62, 0.123, 320],
  [0.84, 0.14, 169],
  [0.621, 0.119, 26],
  [0.655, 0.16, 269],
  [0.717, 0.114, 118],
  [0.735, 0.137, 355],
];
const LIGHT_THEME_SHIFT = -0.1;
const TIER_SHIFTS = [0, 0.09, -0.11];

export class Palette {
  #slots = new Map();

  /** Give colours to tenants in the order of their names, so that a reload gives the same ones. */
  learn(tenants) {
    for (const tenant of [...tenants].sort()) this.colorOf(tenant);
  }

  /** The CSS colour of a tenant, the same for as long as the page lives. */
  colorOf(tenant) {
    if (!this.#slots.has(tenant)) this.#slots.set(tenant, this.#freeSlot(tenant));
    return slotColor(this.#slots.get(tenant));
  }

  #freeSlot(tenant) {
    const tier = Math.floor(this.#slots.size / BASE.length);
    const taken = new Set(this.#slots.values());
    let slot = hash(tenant) % BASE.length;
    while (taken.has(tier * BASE.length + slot)) slot = (slot + 1) % BASE.length;
    return tier * BASE.length + slot;
  }
}

function slotColor(slot) {
  const [lightness, chroma, hue] = BASE[slot % BASE.length];
  const tier = Math.floor(slot / BASE.length) % TIER_SHIFTS.length;
  const dark = lightness + TIER_SHIFTS[tier];
  const light = dark + LIGHT_THEME_SHIFT;
  return `light-dark(oklch(${light} ${chroma} ${hue}), oklch(${dark} ${chroma} ${hue}))`;
}

/** FNV-1a, 32 bits. */
function hash(text) {
  let value = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) {
    value = Math.imul(value ^ byte, 0x01000193) >>> 0;
  }
  return value;
}
