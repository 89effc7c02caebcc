/**
 * The memory panel: the block map with its numbers, and what is in focus on it.
 */

import { BlockMap } from "./block-map.js";
import { byId, setText } from "./dom.js";
import { count } from "./format.js";

export class Memory {
  #isFetching = false;

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./palette.js").Palette} palette
   * @param {import("./focus.js").Focus} focus
   * @param {(id: string) => void} onOpen called to show the timeline of a request
   */
  constructor(api, palette, focus, onOpen) {
    this.api = api;
    this.focus = focus;
    this.map = new BlockMap(palette, focus);
    focus.addEventListener("change", () => this.#showFocus());
    byId("focus-clear").addEventListener("click", () => focus.clear());
    byId("focus-timeline").addEventListener("click", () => onOpen(focus.request));
  }

  /** Show a state; its memory is null until the engine has told of it. */
  update({ kv, switching }) {
    if (!kv) return;
    setText(byId("memory-size"), `${count(kv.num_blocks)} blocks of ${kv.block_size} tokens`);
    setText(byId("memory-extents"), `${kv.mean_extent_blocks.toFixed(1)} blocks per group`);
    setText(byId("memory-tiers"), switching.tiers.map(tierText).join(""));
    setText(byId("blocks-free"), count(kv.free));
    setText(byId("blocks-used"), count(kv.used));
    setText(byId("blocks-reserved"), count(kv.reserved));
    setText(byId("blocks-cached"), count(kv.evictable));
    setText(byId("blocks-pinned"), count(kv.pinned));
    if (!document.hidden) this.#fetchBlocks();
  }

  /** Fetch the blocks, one request at a time. A failure shows in the feed, which comes next. */
  async #fetchBlocks() {
    if (this.#isFetching) return;
    this.#isFetching = true;
    try {
      this.map.update(await this.api.json("ui/blocks"));
    } catch {
      // The map keeps what it shows; the state of the connection is the feed's to tell.
    } finally {
      this.#isFetching = false;
    }
  }

  #showFocus() {
    const { focus } = this;
    byId("focus").hidden = focus.isEmpty;
    byId("focus-timeline").hidden = focus.request === null;
    setText(byId("focus-name"), focus.request ?? focus.tenant ?? "");
  }
}

/** How full a tier below the device is: " · host 120 of 4,000 blocks" */
function tierText({ name, num_blocks: all, kept }) {
  return ` · ${name} ${count(kept)} of ${count(all)} blocks`;
}
