/**
 * Asks for an API key when the server wants one.
 */

import { byId } from "./dom.js";

export class KeyDialog {
  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.dialog = byId("key-dialog");
    const input = byId("key-input");
    byId("key-button").addEventListener("click", () => this.ask());
    byId("key-cancel").addEventListener("click", () => this.dialog.close());
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      api.key = input.value.trim();
      input.value = "";
      this.dialog.close();
    });
  }

  ask() {
    if (!this.dialog.open) this.dialog.showModal();
  }
}
