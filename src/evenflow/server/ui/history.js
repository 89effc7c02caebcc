/**
 * The last five minutes of states, kept in the page.
 */

const KEPT_S = 300;
const SHORTEST_SPAN_S = 60;

export class History {
  /** @type {object[]} oldest first */
  states = [];

  /** Append a state and forget what is too old. A clock that went back means a new server. */
  push(state) {
    if (this.states.length && state.at_s < this.states.at(-1).at_s) this.states = [];
    this.states.push(state);
    while (this.states[0].at_s < state.at_s - KEPT_S) this.states.shift();
  }

  /** The stretch of time to show, in the server's seconds: it grows from one minute to five. */
  get span() {
    const end = this.states.at(-1)?.at_s ?? 0;
    const age = end - (this.states[0]?.at_s ?? end);
    return { start: end - Math.min(Math.max(age, SHORTEST_SPAN_S), KEPT_S), end };
  }

  /** The state nearest to a moment. */
  nearest(atS) {
    let best = this.states.at(-1);
    for (const state of this.states) {
      if (Math.abs(state.at_s - atS) < Math.abs(best.at_s - atS)) best = state;
    }
    return best;
  }
}
