/** What is looked at. It stands in the address behind `#`, so that a view can be shared. */

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

/** Take the view from the address: `known` are defaults that what is served decides, `choices` what is to be had. */
export function openView(known, choices) {
  Object.assign(defaults, known);
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(defaults)) {
    const value = given.get(name) ?? defaults[name];
    state[name] = choices[name] && !choices[name].includes(value) ? defaults[name] : value;
  }
}

/** Let `listener` hear of every later value. */
export function listen(name, listener) {
  listeners.set(name, [...(listeners.get(name) ?? []), listener]);
}

/** Change a value and tell who listens. */
export function change(name, value) {
  if (state[name] === String(value)) return;
  state[name] = String(value);
  clearTimeout(waiting);
  waiting = setTimeout(writeAddress, 200); // browsers refuse more than a few a second
  for (const listener of listeners.get(name) ?? []) listener(state[name]);
}

/** A value as a number; what is none in the address is the default. */
export function number(name) {
  return Number.isFinite(parseFloat(state[name])) ? parseFloat(state[name]) : parseFloat(defaults[name]);
}

/** How tokens are chosen, as the server wants it. */
export function sampling() {
  return { temperature: number("temperature"), top_k: number("top_k"), top_p: number("top_p") };
}

function writeAddress() {
  const changed = Object.entries(state).filter(([name, value]) => value !== defaults[name]);
  history.replaceState(null, "", `#${new URLSearchParams(changed)}`);
}
