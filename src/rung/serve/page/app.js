/** The page: ask which runs are served, and open the view that the address names. */

import { ask, useKey } from "./api.js";
import { rove } from "./dom.js";
import { rank } from "./marks.js";
import { change, openView, state } from "./state.js";
import { mountAttention } from "./attention.js";
import { mountChat } from "./chat.js";
import { mountNextToken } from "./next_token.js";
import { mountCompare } from "./compare.js";
import { mountSurprisal } from "./surprisal.js";

// The keys are ids in the page and names in shared links.
const VIEWS = { side: mountCompare, next: mountNextToken, surprise: mountSurprisal, attention: mountAttention, chat: mountChat };
const LOOK = "Return the number of items in the list. Return the number of items in the dictionary.";
// Characters of the run's own text. It is shown twice, so that attention can look back at the first time.
const LOOKED_AT = 80;
const THEMES = ["auto", "light", "dark"];

const tabs = [...document.querySelectorAll("[role=tab]")];
const lock = document.getElementById("lock");
const trouble = document.getElementById("trouble");
const mounted = new Set();
let runs = null;

async function start() {
  trouble.textContent = "";
  try {
    runs = (await ask("/api/rungs")).rungs;
  } catch (error) {
    trouble.textContent = lock.hidden ? error.message : "";
    return;
  }
  lock.hidden = true;
  const names = runs.map((run) => run.name);
  const looking = runs.filter((run) => run.layers > 0).map((run) => run.name);
  openView(guessView(), { tab: Object.keys(VIEWS), a: names, b: [...names, "none"], who: looking, chat: names });
  document.getElementById("served").textContent = describeServed();
  open(state.tab);
}

/** Choose the defaults of a view: the best trained run beside the best counting one, on text like theirs. */
function guessView() {
  const ranked = [...runs].sort((a, b) => rank(a) - rank(b));
  const best = ranked[0];
  const other = ranked.find((run) => run.counts !== best.counts) ?? ranked[1];
  const looks = ranked.filter((run) => run.layers > 0);
  const told = (key) => runs.find((run) => run[key])?.[key];
  return {
    prompt: told("prompt") ?? "The",
    text: told("passage") ?? LOOK,
    look: told("prompt") ? twice(told("prompt")) : LOOK,
    a: best.name,
    b: other?.name ?? "none",
    who: looks.sort((a, b) => b.layers * b.heads - a.layers * a.heads)[0]?.name ?? "",
    chat: runs.find((run) => run.chat)?.name ?? "",
  };
}

function twice(prompt) {
  const words = [...prompt.trim()].slice(0, LOOKED_AT).join("");
  return `${words} ${words}`;
}

function describeServed() {
  const corpora = [...new Set(runs.map((run) => run.corpus).filter(Boolean))];
  const count = runs.length === 1 ? "one run" : `${runs.length} runs`;
  return corpora.length ? `${count} on ${corpora.join(", ")}` : count;
}

function open(name) {
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !chosen;
    if (chosen) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  change("tab", name);
  if (mounted.has(name)) return;
  mounted.add(name);
  VIEWS[name](document.getElementById(name), runs);
}

/** Switch between light, dark and the system's theme; the choice is kept. */
function setUpTheme() {
  const button = document.getElementById("theme");
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    document.dispatchEvent(new CustomEvent("theme"));
  };
  const saved = localStorage.getItem("rung-theme");
  apply(THEMES.includes(saved) ? saved : "auto");
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    localStorage.setItem("rung-theme", next);
    apply(next);
  });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", () => document.dispatchEvent(new CustomEvent("theme")));
}

function setUpLock() {
  document.addEventListener("locked", () => {
    lock.hidden = false;
    document.getElementById("key").focus();
  });
  lock.addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(document.getElementById("key").value);
    if (runs === null) start();
    else lock.hidden = true;
  });
}

setUpTheme();
setUpLock();
rove(
  document.getElementById("tabs"),
  () => tabs,
  (tab) => runs && open(tab.id.slice("tab-".length)),
);
for (const tab of tabs) tab.addEventListener("click", () => runs && open(tab.id.slice("tab-".length)));
// A link pasted into this tab changes only what is behind the `#`: open it as if it were new.
window.addEventListener("hashchange", () => location.reload());
start();
