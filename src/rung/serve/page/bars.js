/** A distribution as bars: the model's probability behind, the probability after sampling settings in front. */

import { make, percent, spellToken, showToken, step } from "./dom.js";

/** Make a list of bars; `onPick` gets the token that was clicked, or chosen with Enter. */
export function makeBars(label, onPick) {
  const rows = [];
  const list = make("div", { class: "bars", role: "listbox", tabindex: 0, "aria-label": label });
  const rest = make("p", { class: "note" });
  let tokens = [];
  let at = 0;

  function mark(to) {
    at = Math.max(0, Math.min(to, tokens.length - 1));
    rows.forEach((row, i) => row.element.setAttribute("aria-selected", String(i === at)));
    list.setAttribute("aria-activedescendant", rows[at].element.id);
  }

  function pick(i) {
    mark(i);
    onPick(tokens[i]);
  }

  list.addEventListener("keydown", (event) => {
    const to = step(event.key, at, tokens.length);
    if (to === null && event.key !== "Enter") return;
    event.preventDefault();
    if (!tokens.length) return;
    if (to === null) return pick(at);
    mark(to);
    rows[at].element.scrollIntoView({ block: "nearest" });
  });

  function show(answer, fresh) {
    tokens = answer.tokens;
    const most = Math.max(...tokens.map((token) => Math.max(token.probability, token.drawn)));
    while (rows.length < tokens.length) rows.push(makeRow(list, rows.length, pick));
    rows.forEach((row, i) => row.show(tokens[i], most));
    mark(fresh ? 0 : at);
    rest.textContent = describeRest(answer);
  }

  return { element: make("div", {}, makeLegend(), list, rest), list, show };
}

let lists = 0;

function makeRow(list, i, pick) {
  if (i === 0) lists += 1;
  const name = make("span", { class: "token" });
  const bar = make("span", { class: "track" }, make("i", { class: "ghost" }), make("i", { class: "bar" }));
  const [own, drawn] = [make("span", { class: "own" }), make("span", { class: "drawn" })];
  const element = make(
    "div",
    { role: "option", id: `bar-${lists}-${i}`, onclick: () => pick(i) },
    name,
    bar,
    own,
    drawn,
  );
  list.append(element);
  return {
    element,
    show(token, most) {
      element.hidden = !token;
      if (!token) return;
      name.replaceChildren(...showToken(token.text), ...(token.end ? [make("em", {}, " end")] : []));
      element.style.setProperty("--own", token.probability / most);
      element.style.setProperty("--drawn", token.drawn / most);
      element.classList.toggle("cut", token.drawn === 0);
      own.textContent = percent(token.probability);
      drawn.textContent = token.drawn === 0 ? "cut off" : percent(token.drawn);
      const said = token.drawn === 0 ? "cut off" : `drawn with ${percent(token.drawn)}`;
      element.setAttribute("aria-label", `${spellToken(token.text)}, ${percent(token.probability)}, ${said}`);
    },
  };
}

function makeLegend() {
  const [own, drawn] = [make("span", { class: "own" }, "model"), make("span", { class: "drawn" }, "drawn")];
  return make(
    "div",
    { class: "bars-head", "aria-hidden": "true" },
    make("span", {}, "token"),
    make("span"),
    own,
    drawn,
  );
}

function describeRest({ rest, entropy, drawn_entropy: drawn, kept }) {
  const others = rest.tokens ? `${rest.tokens.toLocaleString("en")} others share ${percent(rest.probability)}, ` : "";
  const left = `${kept.toLocaleString("en")} ${kept === 1 ? "token" : "tokens"} can be drawn.`;
  return (
    `${others}drawn with ${percent(rest.drawn)}. Entropy ${entropy.toFixed(2)} bits, ` +
    `${drawn.toFixed(2)} as drawn; ${left}`
  );
}
