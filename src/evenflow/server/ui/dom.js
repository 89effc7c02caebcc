/**
 * Small helpers that build and change the page. Text only ever goes in as text.
 */

/** The document's element with an id. */
export const byId = (id) => document.getElementById(id);

/**
 * Create an element.
 * @param {string} tag
 * @param {Object<string, string>} attributes
 * @param {...(Node|string)} children strings become text nodes
 */
export function create(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Set the text of an element, leaving the page alone where nothing changed. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Make the children of `parent` match `items` in order, keeping the element of each key.
 * @template T
 * @param {Element} parent
 * @param {T[]} items
 * @param {(item: T) => string} keyOf
 * @param {(item: T) => Element} build makes the element of a new key
 * @param {(element: Element, item: T) => void} update
 */
export function reconcile(parent, items, keyOf, build, update) {
  const existing = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let element = existing.get(key);
    if (!element) {
      element = build(item);
      element.dataset.key = key;
    }
    existing.delete(key);
    update(element, item);
    if (element === next) next = next.nextElementSibling;
    else parent.insertBefore(element, next);
  }
  for (const stale of existing.values()) stale.remove();
}

/** A coloured square that stands for a tenant. */
export function swatch(color) {
  const square = create("span", { class: "swatch", "aria-hidden": "true" });
  square.style.setProperty("--color", color);
  return square;
}
