/** Attention: which earlier tokens each token looks at, in every layer and head. */

import { ask, latest, settled } from "./api.js";
import { runField, textField } from "./controls.js";
import { make, percent, rove, spellToken, showToken } from "./dom.js";
import { describeHead, findInductionHead } from "./head_stats.js";
import { drawHeatmap, paintThumbnail } from "./heatmap.js";
import { change, listen, number, state } from "./state.js";

const TOP_ATTENDED = 4; // tokens named in the sentence about one token

export function mountAttention(panel, runs) {
  const able = runs.filter((run) => run.layers > 0);
  if (!able.length) {
    const none = "None of the served runs has attention: serve an rnn-attention, gpt2 or llama3 run.";
    panel.append(make("p", { class: "empty" }, none));
    return;
  }
  const status = make("p", { class: "status", role: "status" });
  const [strip, detail] = [
    make("p", { class: "trail", role: "group", "aria-label": "Tokens" }),
    make("p", { class: "detail", role: "status" }),
  ];
  const map = make("div", { class: "map", role: "region", "aria-label": "The map of the chosen head", tabindex: 0 });
  const [title, stats, heads] = [make("h2"), make("p", { class: "note" }), make("div", { class: "heads" })];
  let found = null;
  let at = 0;

  const refresh = latest(async () => {
    const run = able.find((one) => one.name === state.who) ?? able[0];
    try {
      found = await ask("/api/attention", { model: run.name, text: state.look });
    } catch (error) {
      return void (status.textContent = error.message);
    }
    const left = found.left_out;
    status.textContent = left ? `Only the first ${found.tokens.length} tokens are shown; ${left} are left out.` : "";
    found.induction = findInductionHead(found);
    at = found.tokens.length - 1;
    strip.replaceChildren(...found.tokens.map((token, i) => makeToken(token, i, i === at)));
    showAll();
  });

  /** Return the chosen head; by default the one that copies most (an induction head). */
  function chosen() {
    const [l, h] = state.head ? [number("layer") || 1, number("head") || 1] : found.induction;
    const layer = Math.min(Math.max(l, 1), found.weights.length) - 1;
    const head = Math.min(Math.max(h, 1), found.weights[layer].length) - 1;
    return { layer, head, weights: found.weights[layer][head] };
  }

  function showAll() {
    heads.replaceChildren(...found.weights.map((layer, l) => makeLayer(layer, l, choose)));
    showHead();
  }

  function choose(layer, head) {
    change("layer", layer + 1);
    change("head", head + 1);
    showHead();
  }

  function showHead() {
    const { layer, head, weights } = chosen();
    title.textContent = nameHead(layer, head);
    stats.textContent = describeHead(found.tokens, weights);
    for (const button of heads.querySelectorAll(".head")) {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-label") === title.textContent));
    }
    map.replaceChildren(drawHeatmap(found.tokens, weights, map.clientWidth, look));
    look(at);
  }

  /** Show what one token attends to. */
  function look(token) {
    at = token;
    const row = chosen().weights[at];
    strip.querySelectorAll(".tok").forEach((element, i) => {
      element.classList.toggle("looking", i === at);
      element.style.setProperty("--s", row[i]);
    });
    map.querySelector("svg").mark(at);
    detail.replaceChildren(make("b", {}, `“${found.tokens[at]}”`), ` looks at ${tellMost(found.tokens, row)}.`);
  }

  strip.addEventListener(
    "mouseover",
    (event) => event.target.closest(".tok") && look(Number(event.target.closest(".tok").dataset.at)),
  );
  rove(
    strip,
    () => [...strip.querySelectorAll(".tok")],
    (element, i) => look(i),
  );
  listen("look", settled(refresh, 300));
  listen("who", refresh);
  document.addEventListener("theme", () => found && showAll());
  panel.append(
    make(
      "div",
      { class: "controls" },
      textField("Text", "look", { rows: 2, limit: 2000 }),
      make("div", { class: "sliders" }, runField("Run", "who", able)),
    ),
    status,
    strip,
    detail,
    make(
      "div",
      { class: "looks" },
      make("div", {}, title, stats, map),
      make(
        "div",
        {},
        make("h2", {}, "All heads"),
        make(
          "p",
          { class: "note" },
          "A row looks at its columns: first token on the left. Choose one to see it large.",
        ),
        heads,
      ),
    ),
  );
  refresh();
}

function makeToken(token, i, reached) {
  const attributes = { class: "tok", role: "img", tabindex: reached ? 0 : -1, "data-at": i };
  return make("span", { ...attributes, "aria-label": spellToken(token) }, ...showToken(token));
}

function makeLayer(layer, l, choose) {
  const buttons = layer.map((weights, h) => makeHead(weights, nameHead(l, h), h, () => choose(l, h)));
  const name = `Layer ${l + 1}`;
  return make(
    "div",
    { class: "layer", role: "group", "aria-label": name },
    make("h3", {}, name),
    make("div", {}, ...buttons),
  );
}

function makeHead(weights, name, head, choose) {
  const canvas = make("canvas", { width: 144, height: 144, "aria-hidden": "true" });
  paintThumbnail(canvas, weights);
  const attributes = { type: "button", class: "head", "aria-label": name, onclick: choose };
  return make("button", attributes, canvas, String(head + 1));
}

function nameHead(layer, head) {
  return `Layer ${layer + 1}, head ${head + 1}`;
}

/** List the tokens with the largest weights of a row. */
function tellMost(tokens, row) {
  const ranked = row.map((weight, i) => [weight, i]).sort((x, y) => y[0] - x[0]);
  const most = ranked.slice(0, TOP_ATTENDED).filter(([weight]) => weight > 0.005);
  return most.map(([weight, i]) => `“${tokens[i]}” ${percent(weight)}`).join(", ");
}
