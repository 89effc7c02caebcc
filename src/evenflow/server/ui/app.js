/**
 * Wires the live feed to the views.
 */

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { byId, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { Focus } from "./focus.js";
import { duration } from "./format.js";
import { History } from "./history.js";
import { KeyDialog } from "./keys.js";
import { Latency } from "./latency.js";
import { Memory } from "./memory.js";
import { Overview } from "./overview.js";
import { Palette } from "./palette.js";
import { Requests } from "./requests.js";
import { Tenants } from "./tenants.js";
import { Timeline } from "./timeline.js";

const CONNECTION_TEXT = {
  connecting: "Connecting",
  lost: "Connection lost",
  locked: "Needs an API key",
};

const api = new Api(new URL("../", document.baseURI));
const history = new History();
const palette = new Palette();
const focus = new Focus();
const keys = new KeyDialog(api);
const timeline = new Timeline(api, palette);
const openTimeline = (id) => timeline.open(id);
const chat = new Chat(api, { onLocked: () => keys.ask(), onOpen: openTimeline });
const latency = new Latency(history);
const views = [
  new Overview(history),
  new Memory(api, palette, focus, openTimeline),
  new Tenants(palette, focus),
  new Requests(palette, focus, openTimeline),
  latency,
];

let isFrameDue = false;

/** Keep a state, and draw the newest one in the next frame; a hidden page draws nothing. */
function onState(state) {
  history.push(state);
  if (isFrameDue) return;
  isFrameDue = true;
  requestAnimationFrame(() => {
    isFrameDue = false;
    show(history.states.at(-1));
  });
}

function show(state) {
  palette.learn(state.tenants.map(({ id }) => id));
  chat.model = state.model;
  setText(byId("model"), state.model);
  setText(byId("version"), `v${state.version}`);
  setText(byId("uptime"), `up ${duration(state.uptime_s)}`);
  setText(byId("connection-text"), serverText(state));
  for (const view of views) view.update(state);
}

function serverText({ paused, draining }) {
  if (draining) return "Draining";
  return paused ? "Paused" : "Live";
}

/** Show how the connection is. While it is live, the server's own state is shown instead. */
function onConnection(connection, retryMs) {
  document.body.dataset.connection = connection;
  if (connection === "locked") keys.ask();
  if (connection === "live") return;
  const retry = connection === "lost" ? `, next try in ${duration(retryMs / 1000)}` : "";
  setText(byId("connection-text"), CONNECTION_TEXT[connection] + retry);
}

new Feed(api, onState, onConnection).run();
