/** The state of the view. It stands in the address behind `#`, so that a view can be shared. */

const defaults = {
  tab: "side",
  prompt: "",
  text: "",
  look: "",
  rungs: "",
  a: "",
  b: "",
  who: "",
  layer: "",
  head: "",
  chat: "",
  temperature: "0.8",
  top_k: "0",
  top_p: "0.95",
  max_tokens: "120",
  seed: "0",
};
const listeners = new Map();
let waiting = 0;

/** Every value is a string, as in the address. */
export const state = { ...defaults };

/** Read the view from the address. `known` are defaults that the served runs decide, `choices` the allowed values. */
export function openView(known, choices) {
  Object.assign(defaults, known);
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(defaults)) {
    const value = given.get(name) ?? defaults[name];
    state[name] = choices[name] && !choices[name].includes(value) ? defaults[name] : value;
  }
}

/** Call `listener` with every later value. */
export function listen(name, listener) {
  listeners.set(name, [...(listeners.get(name) ?? []), listener]);
}

/** Change a value and call its listeners. */
export function change(name, value) {
  if (state[name] === String(value)) return;
  state[name] = String(value);
  clearTimeout(waiting);
  waiting = setTimeout(writeAddress, 200); // browsers refuse more than a few a second
  for (const listener of listeners.get(name) ?? []) listener(state[name]);
}

/** Return a value as a number; the default where the address has none. */
export function number(name) {
  return Number.isFinite(parseFloat(state[name])) ? parseFloat(state[name]) : parseFloat(defaults[name]);
}

/** Return the sampling settings as the server reads them. */
export function sampling() {
  return { temperature: number("temperature"), top_k: number("top_k"), top_p: number("top_p") };
}

function writeAddress() {
  const changed = Object.entries(state).filter(([name, value]) => value !== defaults[name]);
  history.replaceState(null, "", `#${new URLSearchParams(changed)}`);
}
