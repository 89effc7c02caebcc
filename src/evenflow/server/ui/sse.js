/**
 * Server-sent events over fetch, which, unlike EventSource, can carry an API key.
 */

/**
 * Yield the data of each event of a response body.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>}
 */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (pending + value).replaceAll("\r\n", "\n").split("\n\n");
      pending = events.pop();
      yield* events.map(dataOf).filter((data) => data !== "");
    }
  } finally {
    await reader.cancel();
  }
}

/** The data lines of one event, joined. Comments and other fields are left out. */
function dataOf(event) {
  return event
    .split("\n")
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).replace(/^ /, ""))
    .join("\n");
}
