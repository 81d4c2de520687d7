/** Make DOM elements. A string becomes text, never markup: text from a model can run nothing. */

const SVG = "http://www.w3.org/2000/svg";

/** Make an element with its attributes, listeners (`onclick`), style variables (`--b`), and children. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element in the same way. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) set(element, name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function set(element, name, value) {
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name.startsWith("--")) element.style.setProperty(name, value);
  else if (value === true) element.setAttribute(name, "");
  else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
}

/** Return the index that an arrow, Home or End key leads to from `at`, of `count`; null for any other key. */
export function step(key, at, count) {
  if (key === "ArrowRight" || key === "ArrowDown") return Math.min(at + 1, count - 1);
  if (key === "ArrowLeft" || key === "ArrowUp") return Math.max(at - 1, 0);
  if (key === "Home") return 0;
  if (key === "End") return count - 1;
  return null;
}

/** Let Tab reach one of the elements and the arrow keys the others (a roving tabindex). */
export function rove(container, find, onReach = () => {}) {
  const reach = (elements, at) => {
    elements.forEach((element, i) => (element.tabIndex = i === at ? 0 : -1));
    onReach(elements[at], at);
  };
  container.addEventListener("keydown", (event) => {
    const elements = find();
    const to = step(event.key, elements.indexOf(event.target), elements.length);
    if (to === null || !elements.includes(event.target)) return;
    event.preventDefault();
    elements[to].focus();
  });
  container.addEventListener("focusin", (event) => {
    const elements = find();
    if (elements.includes(event.target)) reach(elements, elements.indexOf(event.target));
  });
}

const BLANKS = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍" };

/** Show a token's text with its white space made visible. */
export function showToken(text) {
  if (text === "") return [make("span", { class: "blank" }, "∅")];
  const parts = text.match(/[ \n\t\r]|[^ \n\t\r]+/g);
  return parts.map((part) => (part in BLANKS ? make("span", { class: "blank" }, BLANKS[part]) : part));
}

/** Write a token's text as it is to be read aloud. */
export function spellToken(text) {
  if (text === "") return "nothing";
  return text.trim() || text.replaceAll(" ", "space ").replaceAll("\n", "line break ").replaceAll("\t", "tab ").trim();
}

/** Format a probability in per cent. */
export function percent(share) {
  if (share > 0 && share < 0.001) return "<0.1%";
  return `${(100 * share).toFixed(1)}%`;
}

/** Format a number with so many decimals; JSON has null for infinity. */
export function decimal(number, digits = 2) {
  return number === null || number === undefined ? "∞" : number.toFixed(digits);
}

/** Format a count with thousands separators. */
export function whole(number) {
  return Math.round(number).toLocaleString("en");
}
