/** Requests to the server: JSON, and streams of server-sent events. */

const KEY = "rung-api-key";

/** Keep the API key for as long as the tab is open. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Post a body, or get where there is none, and parse the JSON; throws the error message of the server. */
export async function ask(path, body) {
  return (await request(path, body)).json();
}

/** Yield the events of a stream as they come, each a parsed object. */
export async function* stream(path, body, signal) {
  const response = await request(path, { ...body, stream: true }, signal);
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") continue; // the server closes after it
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    yield event;
  }
}

/** Wrap `work` so that one call runs at a time; of the calls meanwhile only the last runs after it. */
export function latest(work) {
  let running = false;
  let wanted = false;
  return async function run() {
    wanted = true;
    if (running) return;
    running = true;
    while (wanted) {
      wanted = false;
      await work();
    }
    running = false;
  };
}

/** Debounce `work`: run it once no call has come for so many milliseconds. */
export function settled(work, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
}

async function request(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const response = await fetch(path, { ...options, signal }).catch(explain("The server does not answer"));
  if (response.ok) return response;
  if (response.status === 401) document.dispatchEvent(new CustomEvent("locked"));
  throw new Error(await readMistake(response));
}

/** Turn a failed connection into a readable error; an abort by the page itself passes unchanged. */
function explain(what) {
  return (error) => {
    throw error.name === "AbortError" ? error : new Error(`${what}: is it still running?`);
  };
}

async function readMistake(response) {
  const answer = await response.json().catch(() => ({}));
  return answer.error?.message ?? `The server says ${response.status} ${response.statusText}`;
}

/** Yield the data of each event: lines that begin with `data:`, ended by an empty line. */
async function* readEvents(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(explain("The server broke off"));
      text += decoder.decode(value ?? new Uint8Array(), { stream: !done });
      const events = text.split(/\r?\n\r?\n/);
      text = events.pop();
      for (const event of events) {
        const data = readData(event);
        if (data !== "") yield data;
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function readData(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}
